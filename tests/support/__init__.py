"""What several packages' tests share: programs and servers to start, runs to interrupt."""
