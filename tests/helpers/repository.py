"""What the packaging and layout tests share: where the repository is and which files it has."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def repository_files(root: Path = ROOT) -> list[str]:
    """The files that are or could be committed, as sorted paths from `root`.

    A symbolic link is one entry and is not followed. Without git (a downloaded archive) all
    files count except those that tools have left behind.
    """
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        paths = (path for path in listed.split("\0") if path)
        return sorted(path for path in paths if os.path.lexists(root / path))
    return sorted(_walk(root))


def _walk(root: Path) -> list[str]:
    kept_hidden = {".ci", ".gitignore"}
    found = []
    for folder, names, files in os.walk(root):
        here = Path(folder)
        links = [name for name in names if (here / name).is_symlink()]
        names[:] = [
            name
            for name in names
            if name not in links
            and (not name.startswith(".") or name in kept_hidden)
            and name not in {"__pycache__", "build", "dist"}
            and not name.endswith(".egg-info")
        ]
        wanted = [f for f in files if not f.startswith(".") or f in kept_hidden]
        found += [(here / name).relative_to(root).as_posix() for name in links + wanted]
    return found
