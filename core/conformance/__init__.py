"""What plugins are held to: the checks behind ``bestiary.testing`` and ``bestiary check-kernel``. Private."""
