if __name__ != "bestiary.layers":
    raise ImportError("import bestiary.layers, not the folder layers")
