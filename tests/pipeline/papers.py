"""What the tests of an artifact's papers share: its commands, run in this process, and keys made by openssl."""

import io
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import typer

from pipeline.cli.evidence import bom, pull, sign, verify
from targets.errors import AttarError


def attar(*words):
    """Runs one of the commands; its exit code, standard output and standard error."""
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (verify, sign, bom, pull):
        app.command()(command)
    out, err = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, {"NO_COLOR": "1"}), redirect_stdout(out), redirect_stderr(err):
        try:
            code = app(list(map(str, words)), standalone_mode=False)
        except AttarError as error:
            code = error.exit_code
            err.write(str(error))
    return code or 0, out.getvalue(), err.getvalue()


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def key_pair(folder, name, *, algorithm="EC", curve="P-256", cipher=()):
    """A private and a public key: files NAME.pem and NAME.pub.pem."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    options = ("-pkeyopt", f"ec_paramgen_curve:{curve}") if algorithm == "EC" else ()
    openssl("genpkey", "-algorithm", algorithm, *options, *cipher, "-out", private)
    if not cipher:
        openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public
