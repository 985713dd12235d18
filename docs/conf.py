from importlib.metadata import version as _version

project = "matminer_ed3d"
author = "The matminer_ed3d developers"
copyright = "2026, The matminer_ed3d developers"
release = version = _version("matminer_ed3d")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"matminer_ed3d {release}"

autodoc_member_order = "bysource"
# Methods that a class has from one of ours are shown, those that it has from these classes of others are not.
FOREIGN = [
    "BaseEstimator",
    "BaseException",
    "BaseFeaturizer",
    "ClassifierMixin",
    "MSONable",
    "Module",
    "RegressorMixin",
    "TransformerMixin",
    "_MetadataRequester",
    "_SetOutputMixin",
]
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "inherited-members": ",".join(FOREIGN),
    # scikit-learn writes these into each class.
    "exclude-members": "set_fit_request,set_predict_request,set_score_request,set_transform_request",
}
autodoc_typehints = "none"  # types and shapes stand in the docstring, where a reader looks
numpydoc_show_class_members = False  # autodoc lists them already
numpydoc_class_members_toctree = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
