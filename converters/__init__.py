if __name__ != "bestiary.converters":
    raise ImportError("import bestiary.converters, not the folder converters")
