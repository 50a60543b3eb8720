"""COCO's JSON: objects in `instances.json`, masks by class in `stuff.json`. `file_name` is the path as given."""

from __future__ import annotations

from pipeline.export import coco


class Writer(coco.Writer):
    """Writes boxes and masks as the export form `coco` does, and copies no image."""

    copies_images = False

    def annotation_name(self, head: str, split: str) -> str:
        return f"{self.prefix(head)}.json"
