"""One runnable claim per file; `corpora` brings them text and `judges` measure what they write."""
