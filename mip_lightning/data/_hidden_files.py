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
"""Names, in small letters, that Windows, macOS, Linux and network storage give to their own."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden (``.``, so ``._x.jpg``) or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden."""
    return [path for path in folder.iterdir() if not is_hidden(path.name)]


def is_empty(folder: Path) -> bool:
    """Whether there is no such folder, or nothing but hidden files in it."""
    return not folder.exists() or (folder.is_dir() and not visible(folder))
