if __name__ != "bestiary.core.runtime":
    raise ImportError("import bestiary.core.runtime, not the folder core/runtime")
