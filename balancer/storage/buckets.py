"""Opening a bucket: the packages it takes, and credentials, endpoint and region as the environment has them.

They are looked up on the machine that makes the requests, by every process anew, and go no further: neither
into files nor to other processes.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from balancer.errors import StorageError
from balancer.storage.address import STORES, Address
from balancer.storage.failures import explain_failure

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from balancer.storage.objects import ObjectStorage

ONCE: Any = {"max_retries": 0}
"""Making requests again is up to `ObjectStorage`."""

CREDENTIALS_FOR = timedelta(minutes=10)
"""botocore renews temporary credentials in time if it is asked this often."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_TRUE = ("1", "true", "on", "yes", "y")


def open_bucket(address: Address) -> ObjectStorage:
    """StorageError if a package or the credentials are missing; nothing is asked of the store itself yet."""
    try:
        import obstore.store

        from balancer.storage.objects import ObjectStorage

        store = {"s3": _s3, "gs": _google, "az": _azure}[address.scheme](address)
    except ImportError as error:
        package = (error.name or "obstore").partition(".")[0]
        raise StorageError(
            f"{address.uri}: {STORES[address.scheme]} needs the package {package}, which is not installed",
            hint=f"pip install 'balancer[{address.scheme}]', on every machine of a cluster",
        ) from error
    except obstore.exceptions.BaseError as error:
        raise StorageError(f"{address.uri} cannot be opened: {explain_failure(error).cause}") from None
    return ObjectStorage(address.uri, store)


def _s3(address: Address) -> ObjectStore:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    _check_endpoint()
    try:
        session = boto3.Session()
        found = session.get_credentials()
    except BotoCoreError as error:
        raise StorageError(f"{address.uri}: no AWS credentials: {error}") from None
    if found is None:
        raise StorageError(
            f"{address.uri}: this machine has no AWS credentials",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; every machine of a "
            "cluster needs its own",
        )
    options: Any = {"region": os.environ.get("AWS_REGION") or session.region_name or "us-east-1"}
    if "AWS_CHECKSUM_ALGORITHM" not in os.environ:
        options["checksum_algorithm"] = "SHA256"
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        credential_provider=Boto3CredentialProvider(session, ttl=CREDENTIALS_FOR),
        retry_config=ONCE,
        disable_bulk_delete=True,  # single requests work with every compatible store
        **options,
    )


def _google(address: Address) -> ObjectStore:
    from obstore.store import GCSStore

    return GCSStore(address.bucket, prefix=address.prefix or None, retry_config=ONCE)


def _azure(address: Address) -> ObjectStore:
    from obstore.store import AzureStore

    return AzureStore(address.bucket, prefix=address.prefix or None, retry_config=ONCE)


def _check_endpoint() -> None:
    """What the library makes of a bad endpoint is a crash, or an error that says less."""
    name = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if name is None:
        return
    parts = urlsplit(os.environ[name])
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in parts.netloc:
        raise StorageError(f"{name} is no address of a server", hint="such as https://minio.example.com:9000")
    if parts.username is not None:
        raise StorageError(f"{name} holds a user or a password", hint="use AWS_ACCESS_KEY_ID and its like")
    if parts.scheme == "http" and os.environ.get("AWS_ALLOW_HTTP", "").lower() not in _TRUE:
        raise StorageError(
            f"{name} is plain http, which anyone on the way can read",
            hint="use https, or allow it with AWS_ALLOW_HTTP=true",
        )
