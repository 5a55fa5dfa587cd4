//! HTTP beside the path: health, metrics, groups. Its own thread and listener.
