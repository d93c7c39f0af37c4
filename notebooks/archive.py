"""A web server with the sample data of matplotlib, which answers that it is overloaded a few times at first."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import matplotlib


class Archive:
    """Serves until it is closed; ``given`` counts the files that it gave."""

    def __init__(self, busy):
        self.busy, self.given = busy, 0
        folder = f"{matplotlib.get_data_path()}/sample_data"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, archive, *args, **kwargs):
        self.archive = archive
        super().__init__(*args, **kwargs)

    def do_GET(self):
        if self.archive.busy:
            self.archive.busy -= 1
            self.send_error(503)
        else:
            super().do_GET()
            self.archive.given += 1

    def log_message(self, *args):
        pass
