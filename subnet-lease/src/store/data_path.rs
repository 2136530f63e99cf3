/// Whether pods of this host reach the others, for stores that pass it on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// Not known yet.
    #[default]
    Unknown,
    /// They do.
    Works,
    /// They do not, for this reason.
    Fails(String),
}
