"""Where artifacts are kept for others to fetch: `oci` (any container registry, over `distribution`), `mlflow`."""

__all__: list[str] = []
