"""What the tests of an artifact's papers share: its commands, run in this process, and keys made by openssl."""

import subprocess

from shipping import run

from pipeline.cli.evidence import bom, pull, sign, verify


def attar(*words):
    """Runs one of the commands; its exit code, standard output and standard error."""
    return run((verify, sign, bom, pull), words)


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
