"""The playground: a page on which a model is steered by hand, beside itself unsteered.

why.py           who serves a manner, and why
triangle.py      three traits as the corners of a triangle: points, and who serves what
mixture_map.py   all mixtures of a portfolio's traits in one picture
conversation.py  one conversation held twice, steered and not
panels.py        what is told in HTML
page.py          the Gradio page; the only module that knows of Gradio
"""
