"""COCO's JSON: objects in `instances.json`, with keypoints in `person_keypoints.json`, masks by class in `stuff.json`.

`file_name` is the path as given.
"""

from __future__ import annotations

from pipeline.export import coco


class Writer(coco.Writer):
    """Writes boxes, masks and keypoints as the export form `coco` does, and copies no image."""

    copies_images = False

    def annotation_name(self, head: str, split: str) -> str:
        return f"{self.prefix(head)}.json"
