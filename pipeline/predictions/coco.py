"""COCO's JSON: boxes in `instances.json`, masks by class in `stuff.json`. `file_name` is the image's path as given."""

from __future__ import annotations

from pipeline.export import coco


class Writer(coco.Writer):
    """Writes boxes and masks as the export form `coco` does, and copies no image."""

    copies_images = False

    def annotation_name(self, head: str, split: str) -> str:
        prefix = coco.PREFIX[self.heads[head].space.task]
        return self.name_for(head, f"{prefix}.json", f"{prefix}_{{}}.json")
