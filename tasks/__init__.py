"""Inner training problems: a `Task` describes one, a `Run` is one training in progress."""
