if __name__ != "bestiary.core.text":
    raise ImportError("import bestiary.core.text, not the folder core/text")
