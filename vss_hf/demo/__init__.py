"""The demo page: `vss-hf demo MODEL`, and the app of a Space.

uploads -> labelling -> results (files of one session) -> answers (what is shown of them) -> page (layout) -> serving

Only `page` and `serving` know Gradio (`pip install vss_hf[demo]`).
"""
