"""A file of views that the teacher has labelled, for the targets ``views``."""

from __future__ import annotations

from pathlib import Path

from prism_fast.config import check_new_file, resolve_device, save_yaml
from prism_fast.distill.stored_views import write_views
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.trainer import open_set
from prism_fast.distill.views_config import ViewsConfig
from prism_fast.progress import ProgressFactory, silent


def label_views(config: ViewsConfig, *, progress: ProgressFactory = silent) -> Path:
    """Writes the file and returns its path.

    Raises:
        UserError: the place is taken; what the set, the teacher and :func:`write_views` refuse.
    """
    from prism_fast.data.shards import ShardSet
    from prism_fast.teachers.extractors import load_observer

    path, run = Path(config.out).expanduser(), config.run()
    check_new_file(path)
    device = resolve_device(config.device)
    teacher, source = load_observer(config.teacher, device), open_set(run, ShardSet(config.data))
    loader = ViewLoader(run, source, teacher, device)
    loader.try_targets(config.batch)
    views = config.augment.views or 0
    with progress(views * len(source), "views", "label", 0) as bar:
        write_views(path, config.augment, source, teacher.fingerprint, config.top_k, loader.labelled, bar.update)
    save_yaml(config, path.with_name(f"{path.name}.config.yaml"))
    return path
