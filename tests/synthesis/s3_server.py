"""A server that speaks S3, on this machine."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

_ACCESS = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}  # fmt: skip


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """What the environment says of a new server; it is set in this process too, while the server runs.

    It answers one request at a time: moto fails where one object is written twice at once (it closes what it still
    reads).
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    answer, lock = server._server.app, threading.Lock()

    def one_at_a_time(*request: Any) -> Any:
        with lock:
            return answer(*request)

    server._server.app = one_at_a_time
    host, port = server.get_host_and_port()
    found = {**_ACCESS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("AWS_PROFILE", raising=False)
            for name, value in found.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            yield found
    finally:
        server.stop()


class Bucket:
    """A new bucket, and a set in it, as another client sees it."""

    def __init__(self) -> None:
        self.name = f"bucket-{secrets.token_hex(8)}"  # the random module begins anew with each test
        self.out = f"s3://{self.name}/sets/first"
        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket=self.name)

    def objects(self) -> dict[str, bytes]:
        """Key under the set's prefix to content; there must be nothing else."""
        return {name: self.read(name) for name in self.times()}

    def times(self) -> dict[str, Any]:
        """When each was written."""
        listed = self._client.list_objects_v2(Bucket=self.name).get("Contents", ())
        assert all(entry["Key"].startswith("sets/first/") for entry in listed)
        return {entry["Key"].removeprefix("sets/first/"): entry["LastModified"] for entry in listed}

    def read(self, name: str) -> bytes:
        data: bytes = self._client.get_object(Bucket=self.name, Key=f"sets/first/{name}")["Body"].read()
        return data

    def write(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=f"sets/first/{name}", Body=data)

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=f"sets/first/{name}")
