"""nipype: a node that translates: python nipype_node.py IN.nii.gz FOLDER."""

from __future__ import annotations

import sys

from nipype import Node

from scorefusion.embed.nipype import Translate


def main(source: str, folder: str) -> None:
    """Run one node; in a workflow, connect its out_file."""
    node = Node(Translate(model="t1-sr4", steps=1, dtype="float32"), name="fine", base_dir=folder)
    node.inputs.in_files = [source]
    print(node.run().outputs.out_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
