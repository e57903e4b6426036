"""The demo page: `vss-hf demo MODEL`, and the app of a Space.

uploads -> labelling -> results (files of one session) -> answers (what is shown of them) -> page -> serving

`storage` is the folder of a running page, `line` whose turn it is, `layout` the parts of the page; `snippets` and
`flicker_plot` are its HTML.
Only `layout`, `page` and `serving` know Gradio (the extra `demo`).
"""
