"""Programs on top of the models: the web page, and a folder searched by words."""
