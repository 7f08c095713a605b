"""How long a test may take, and which are for --long."""


def bounded(seconds):
    def mark(function):
        function.seconds = seconds
        return function
    return mark


def long(function):
    function.long = True
    return function
