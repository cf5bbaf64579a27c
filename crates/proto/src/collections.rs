//! Hash maps with a fixed hasher: the same seed gives the same run, everywhere.

/// A hash map whose iteration order depends only on what was inserted.
pub type Map<K, V> = hashbrown::HashMap<K, V, rustc_hash::FxBuildHasher>;
/// A hash set whose iteration order depends only on what was inserted.
pub type Set<K> = hashbrown::HashSet<K, rustc_hash::FxBuildHasher>;
