"""The docs site: the repository's own pages, and the reference of C++ and C (Doxygen's XML through Breathe) and Python
(read without importing it). Run by launch/site from the root of the repository, which is the site's source, so that links
between pages are the same here as in a checkout."""

import html
import itertools
import pathlib
import re
import sys

from breathe.renderer.sphinxrenderer import SphinxRenderer, WithContext
from docutils import nodes
from sphinx import addnodes
from sphinx.domains.c import ASTNestedName
from sphinx.highlighting import PygmentsBridge
from sphinx.util import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from python_pages import reference  # noqa: E402

root = pathlib.Path(__file__).resolve().parents[2]
warning = logging.getLogger("allnorm").warning

project = "allnorm"
version = release = re.search(r'ALLNORM_VERSION "(.*)"', (root / "include/allnorm/version.h").read_text())[1]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/site/*.rst", "data/digits/README.md"]
exclude_patterns = ["build", ".*", "src", "kernels", "tests", "launch", "bench", "examples"]
extensions = ["breathe", "myst_parser"]

html_theme = "furo"
html_title = f"allnorm {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
default_role = "code"
myst_heading_anchors = 4
highlight_language = "text"
suppress_warnings = ["myst.header"]

breathe_projects = {"allnorm": str(root / "build/site/xml")}
breathe_default_project = "allnorm"
breathe_domain_by_extension = {"h": "c", "hpp": "cpp"}
cpp_id_attributes = c_id_attributes = ["ALLNORM_API"]

FIRST = ("python", "catalogue", "equations", "experiment", "cli", "install", "reliability", "performance")
GUIDES = sorted((page for page in ("docs/" + path.stem for path in root.glob("docs/*.md")) if page != "docs/design"),
                key=lambda page: (FIRST.index(page[5:]) if page[5:] in FIRST else len(FIRST), page))
CPP = (".cpp", ".hpp", ".cu", ".cuh", ".c", ".h")
PROJECT = ("docs/design", "CONTRIBUTING", "CHANGELOG", "data/digits/README")
REFERENCE = ("docs/site/cpp", "docs/site/c", "docs/site/python")
SHORT = {  # in the list of pages
    "docs/site/cpp": "C++", "docs/site/c": "C", "docs/site/python": "Python",
    "docs/equations": "Equations", "docs/experiment": "The experiment", "docs/reliability": "Reliability",
    "data/digits/README": "The data: digits",
}
TOC = "".join(
    f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n" +
    "\n".join(f"{SHORT[page]} </{page}>" if page in SHORT else "/" + page for page in pages) + "\n```\n"
    for caption, pages in (("Guides", GUIDES), ("Reference", REFERENCE), ("Project", PROJECT))
)
documented = set()
sources = {}  # files and folders that pages link to, by their pages' names


def header(match):
    """A section on a header: its first comment and what it declares."""
    name = match[1]
    path = root / (name if name.startswith("adapters") else "include/" + name)
    documented.add(path)
    lines = path.read_text().splitlines()
    about = " ".join(line[2:].strip() for line in itertools.takewhile(lambda line: line.startswith("//"), lines))
    shown = name.replace("adapters/torch/", "allnorm/torch/")
    return f"{shown}\n{'-' * len(shown)}\n\n{about}\n\n.. doxygenfile:: {path.relative_to(root).as_posix()}\n"


def read(app, name, text):
    if name == root_doc:
        text[0] += TOC
    text[0] = re.sub(r"^\.\. header:: (\S+)$", header, text[0], flags=re.MULTILINE)
    text[0] = re.sub(r"^\.\. module:: (\S+)$", lambda match: reference(root / "python", match[1], warning), text[0], flags=re.M)


def contents(renderer, node):
    """What a header declares, and of a namespace what is in that header: without a title, which has the section, and without
    a declaration of the namespace, which would stand once for each header."""
    data = renderer.compound_parser.parse(node.refid)
    if data.compounddef.kind == "namespace":
        data.compounddef.briefdescription = data.compounddef.detaileddescription = None
    with WithContext(renderer, renderer.context.create_child_context(data).create_child_context(data.compounddef)):
        return renderer.render(data)


def section(renderer, node):
    """The members of a class of one kind; private ones are not of the interface."""
    return [] if node.kind.startswith("private-") else members(renderer, node)


def source_page(path):
    """The page of a file or folder of the repository that a page links to."""
    page = "source/" + path.relative_to(root).as_posix()
    sources[page] = path
    for child in children(path):
        source_page(child)
    return page


def children(path):
    return sorted(child for child in path.iterdir() if not child.name.startswith(("__", "."))) if path.is_dir() else []


def link_sources(app, tree):
    """Links to files of the repository lead to their text."""
    for node in list(tree.findall(addnodes.download_reference)):
        path = (root / app.env.docname).parent.joinpath(node["reftarget"]).resolve()
        uri = app.builder.get_relative_uri(app.env.docname, source_page(path))
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def link_folders(app, env, node, content):
    path = (root / node["refdoc"]).parent.joinpath(node["reftarget"]).resolve()
    if path.is_dir():
        uri = app.builder.get_relative_uri(node["refdoc"], source_page(path))
        return nodes.reference("", "", content, refuri=uri, internal=True)
    return None


def source_pages(app):
    highlighter = PygmentsBridge("html", "friendly")
    for page, path in sources.items():
        title = path.relative_to(root).as_posix()
        if path.is_dir():
            items = (f'<li><a href="{path.name}/{child.name}.html">{child.name}</a></li>' for child in children(path))
            body = f"<ul>{''.join(items)}</ul>"
        else:
            language = {".py": "python", ".txt": "cmake", ".sh": "bash"}.get(path.suffix, "text")
            body = highlighter.highlight_block(path.read_text(), "cpp" if path.suffix in CPP else language)
        yield page, {"title": title, "body": f"<h1>{html.escape(title)}</h1>{body}", "parents": []}, "page.html"


def expect_headers(app, env):
    """Every public header has its place."""
    public = set(root.glob("include/allnorm/*.h*")) | set(root.glob("adapters/torch/*.hpp")) - {root / "adapters/torch/views.hpp"}
    for path in sorted(public - documented):
        warning("%s is on no page of the reference, must be on one (docs/site/*.rst)", path.relative_to(root))


def whole_theme(app, error):
    """Debian's Furo has a stylesheet from the web server that it is on, without the colours of a reader whose system is dark, and a
    script in two parts of which a page that is read from a file would take none; the site has both whole."""
    static = pathlib.Path(app.outdir) / "_static"
    styles, script = static / "styles/furo.css", static / "scripts/furo.js"
    wanted = re.compile(r"@import url\((/javascript/.*?)\);")
    text = wanted.sub(lambda match: pathlib.Path("/usr/share" + match[1]).read_text(), styles.read_text())
    if "prefers-color-scheme" not in text:
        dark = re.search(r'@media not print \{\s*body\[data-theme="dark"\].*?\} \}', text, re.DOTALL)[0]
        dark = dark.replace('body[data-theme="dark"]', 'body:not([data-theme="light"])')
        text += f"\n@media (prefers-color-scheme: dark) {{\n{dark} }}\n"
    styles.write_text(text)
    parts = re.compile(r'^import Gumshoe from "\./(.*)";$', re.MULTILINE)
    script.write_text(parts.sub(lambda match: (script.parent / match[1]).read_text(), script.read_text()))


def display(name):
    """A name of C as the index and the search have it: a constant of an enum without a name is called by its own."""
    return ".".join(part.get_display_string() for part in name.names if len(name.names) == 1 or not part.is_anon())


SphinxRenderer.visit_file = SphinxRenderer.visit_namespace = contents
members, SphinxRenderer.methods["sectiondef"] = SphinxRenderer.methods["sectiondef"], section
ASTNestedName.get_display_string = display
SphinxRenderer.methods["inc"] = lambda renderer, node: []  # the section's title says what to include


def setup(app):
    app.connect("source-read", read)
    app.connect("doctree-read", link_sources, priority=400)  # before Sphinx copies what is linked
    app.connect("missing-reference", link_folders)
    app.connect("env-check-consistency", expect_headers)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", whole_theme)
