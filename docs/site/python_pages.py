"""The reference of a Python module as reStructuredText: what its __all__ names, read from the sources and not imported, so that
neither PyTorch nor a build is needed."""

import ast
import copy
import functools
import re


def file_of(package, module):
    path = package.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def names_of(package, module):
    """What a module defines, by name, and what it takes from others of its package: by name, their module and the name there."""
    own, taken = {}, {}
    for node in ast.parse(file_of(package, module).read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("allnorm."):
            taken.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            own[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            own.update({ast.unparse(target): node for target in (node.targets if isinstance(node, ast.Assign) else [node.target])})
    return own, taken


def definition(package, module, name):
    """The module that defines a name, and the node; None and None for a name of another package."""
    own, taken = names_of(package, module)
    if name in own:
        return module, own[name]
    return definition(package, *taken[name]) if name in taken else (None, None)


def body_of(docstring):
    """A docstring as reStructuredText: "name: text" are definitions, what is indented is code, and no word is markup by chance."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = paragraph.split("\n")
        if lines[0].startswith("    "):
            begin = "" if paragraphs and paragraphs[-1].startswith(("..", "    ")) else ".. code-block:: python\n\n"
            paragraphs.append(begin + paragraph)
            continue
        parts = re.split(r"(`[^`]*`)", paragraph)
        parts[::2] = (re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2])
        paragraph = "".join(parts)
        if len(lines) > 1 and all(re.match(r"\w+(, \w+)*: |    ", line) for line in lines):
            paragraph = re.sub(r"(?m)^(\w+(?:, \w+)*): ", lambda terms: re.sub(r"(\w+)", r"`\1`", terms[1]) + "\n    ", paragraph)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def signature(function, skipped):
    arguments = copy.copy(function.args)
    arguments.args = arguments.args[skipped:]
    returned = f" -> {ast.unparse(function.returns)}" if function.returns and function.name != "__init__" else ""
    return f"({ast.unparse(arguments)}){returned}"


def constructor(package, home, node):
    """The arguments that a class is made with: its own __init__, its fields, or those of a private class that it stands on."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return signature(item, 1)
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_")]
    shown = [re.sub(r"field\(default_factory=(\w+)\)", r"\1()", ast.unparse(field)) for field in fields]
    if fields and (node.decorator_list or "NamedTuple" in map(ast.unparse, node.bases)):
        return "(" + ", ".join(shown) + ")"
    for base in node.bases:
        where, found = definition(package, home, ast.unparse(base))
        if ast.unparse(base).startswith("_") and found is not None:
            return constructor(package, where, found)
    return ""


def indented(text, by):
    return re.sub(r"(?m)^(?=.)", " " * by, text)


def member(node):
    plain = any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)
    kind = "property" if plain else "method"
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    head = f".. py:{kind}:: {node.name}" + ("" if plain else signature(node, 0 if static else 1))
    return head + "\n\n" + indented(body_of(ast.get_docstring(node) or ""), 3)


def reference(package, module, warn):
    """The section of one module."""
    tree = ast.parse(file_of(package, module).read_text())
    public = next(ast.literal_eval(node.value) for node in tree.body
                  if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    text = [f"{module}\n{'-' * len(module)}", f".. py:module:: {module}", body_of(ast.get_docstring(tree))]
    shared = [name for name in public if "." in module and definition(package, "allnorm", name)[1] is not None]
    if shared:
        text.append("As in `allnorm`: " + ", ".join(f":py:obj:`allnorm.{name}`" for name in shared) + ".")
    for name in public:
        if name in shared:
            continue
        home, node = definition(package, module, name)
        if isinstance(node, ast.AnnAssign):
            text.append(f".. py:data:: {name}\n   :type: {ast.unparse(node.annotation)}")
            continue
        docstring = ast.get_docstring(node)
        if not docstring:
            warn("%s.%s has no docstring, must have one (python/%s)", module, name, home.replace(".", "/"))
        if isinstance(node, ast.FunctionDef):
            text.append(f".. py:function:: {name}{signature(node, 0)}\n\n" + indented(body_of(docstring or ""), 3))
            continue
        bases = [base for base in map(ast.unparse, node.bases)
                 if not base.startswith("_") and "._" not in (definition(package, home, base)[0] or "")]
        bases = [f":py:obj:`{base}`" if base in public else f"`{base}`" for base in bases]
        parts = [body_of(docstring or ""), "Bases: " + ", ".join(bases) if bases else ""]
        parts += [member(item) for item in node.body if isinstance(item, ast.FunctionDef)
                  and not item.name.startswith("_") and (ast.get_docstring(item) or item.name == "forward")]
        text.append(f".. py:class:: {name}{constructor(package, home, node)}\n\n" + indented("\n\n".join(filter(None, parts)), 3))
    return "\n\n".join(text) + "\n"
