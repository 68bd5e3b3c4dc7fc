if __name__ != "bestiary.core":
    raise ImportError("import bestiary.core, not the folder core")
