"""Zarr stores on the disk, of which nothing but files is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from scfm._paths import check_regular

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FileStore"]


class FileStore(LocalStore):
    """A local store in which a pipe or a device is an error, for reading it may never end."""

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        check_regular(self.root / key)
        return await super().get(key, *args, **options)

    def get_sync(self, key: str, **options: Any) -> Any:
        check_regular(self.root / key)
        return super().get_sync(key, **options)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        ranges = list(key_ranges)
        for key, _ in ranges:
            check_regular(self.root / key)
        return await super().get_partial_values(prototype, ranges)
