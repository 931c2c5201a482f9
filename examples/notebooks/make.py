#!/usr/bin/env python3
"""Makes indirect_object.ipynb of indirect_object.rs, with what its cells show.

../../with-libtorch ./make.py [--check]: runs the program, and writes the notebook with its outputs beside it. With --check it compares
the cells of the notebook that is there with the program's, and runs nothing.
"""
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SOURCE, NOTEBOOK = HERE / "indirect_object.rs", HERE / "indirect_object.ipynb"
BEGIN, END = "EVCXR_BEGIN_CONTENT ", "EVCXR_END_CONTENT"
DEPENDENCY = ':dep tch-lens = { path = "../..", features = ["view"] }'


def cells():
    """The kind and the text of each cell."""
    body = SOURCE.read_text().split("    // %%", 1)[1].split("    // %% end")[0]
    found = []
    for part in body.split("    // %%"):
        head, _, text = part.partition("\n")
        lines = [line[4:] for line in text.strip("\n").split("\n")]
        if "markdown" in head:
            found.append(("markdown", "\n".join(line.removeprefix("//").removeprefix(" ") for line in lines).strip()))
        else:
            found.append(("code", "\n".join(lines).strip()))
    first = next(i for i, (kind, _) in enumerate(found) if kind == "code")
    found[first] = ("code", DEPENDENCY + "\n" + found[first][1])
    return found


def outputs(printed):
    """The contents of each display, by type: those that come together, HTML and then text, are one."""
    shown = []
    for block in printed.split(BEGIN)[1:]:
        kind, _, rest = block.partition("\n")
        content = rest.split("\n" + END)[0]
        if kind == "text/html" or not shown:
            shown.append({})
        shown[-1][kind] = content
    return shown


def lines(text):
    return text.splitlines(keepends=True)


def main():
    if "--check" in sys.argv:
        notebook = json.loads(NOTEBOOK.read_text())
        kept = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
        if kept != cells():
            sys.exit("the notebook's cells are not those of indirect_object.rs: run make.py")
        return
    command = ["cargo", "run", "--quiet", "--package", "tch-lens-examples", "--example", "notebook", "--features", "view"]
    shown = iter(outputs(subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout))
    made, count = [], 0
    for kind, text in cells():
        cell = {"cell_type": kind, "id": f"cell-{len(made)}", "metadata": {}, "source": lines(text)}
        if kind == "code":
            count += 1
            displays = [next(shown) for _ in range(text.count(".evcxr_display()"))]
            data = [{mime: lines(content) for mime, content in display.items()} for display in displays]
            cell["execution_count"] = count
            cell["outputs"] = [{"output_type": "display_data", "data": one, "metadata": {}} for one in data]
        made.append(cell)
    kernel = {"kernelspec": {"display_name": "Rust", "language": "rust", "name": "rust"},
              "language_info": {"name": "rust", "file_extension": ".rs", "mimetype": "text/rust"}}
    notebook = {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


main()
