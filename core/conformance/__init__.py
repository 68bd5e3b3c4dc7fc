"""What plugins are held to: the checks behind ``bestiary.testing``, ``bestiary check`` and ``check-kernel``. Private."""
