"""Sphinx configuration. `python -m sphinx docs docs/_site` builds the site; nothing else has to be run first."""

import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project = settings["repo"]
author = settings["author"]
copyright = settings["copyright"]
version = release = settings["version"]

# `pages` and `measurements` are ours, in _ext/.
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "pages", "measurements"]
exclude_patterns = ["_*", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# A traceback may quote anything, so that not every one can be highlighted as one.
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_default_options = {"no-value": True}
add_module_names = False
maximum_signature_line_length = 96
python_display_short_literal_types = True

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["workbook.css"]
html_js_files = [("workbook.js", {"defer": "defer"})]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
mathjax_path = "vendor/mathjax/tex-svg.js"
# Neither a menu, whose assistive extensions would be fetched on demand, nor a second copy of each formula.
mathjax3_config = {"options": {"enableMenu": False, "enableAssistiveMml": True}}

html_context = {"repository": settings["git_url"], "default_mode": "auto"}
alone = ["index", "benchmarks", "report", "contributing", "search"]
html_sidebars = {"**": ["sidebar-nav-bs"], **dict.fromkeys(alone, [])}
html_theme_options = {
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "text": project},
    "icon_links": [{"name": "Source", "url": settings["git_url"], "icon": "fa-brands fa-github"}],
    "navbar_end": ["theme-switcher", "navbar-icon-links"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 6,
    "article_header_end": ["page-links"],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "search": []},
    "primary_sidebar_end": [],
    "show_toc_level": 2,
    "search_as_you_type": True,
    "search_bar_text": "Search the workbook",
    "pygments_light_style": "bw",
    "pygments_dark_style": "bw",
    "footer_start": ["copyright"],
    "footer_end": ["page-licence"],
}
