"""Hidden files and folders, and those of file managers and archives, which are not data."""

from pathlib import Path

SYSTEM_NAMES = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
"""Lower-case names of the files and folders that Windows, macOS, Linux and network storage add."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (starts with ``.``, as ``._x.jpg``) or a system's own."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(folder: Path) -> list[Path]:
    """The files and folders in a folder that are not hidden."""
    return [path for path in folder.iterdir() if not is_hidden(path.name)]


def is_empty(folder: Path) -> bool:
    """Whether a folder does not exist or holds only hidden files."""
    return not folder.exists() or (folder.is_dir() and not visible(folder))
