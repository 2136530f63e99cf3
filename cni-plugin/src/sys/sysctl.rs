//! Settings of the kernel's network stack, as files of the namespace that we are in.

use crate::contract::{Code, During, Failure};
use crate::sys::small_file;

/// Sets a value, unless it has it already: in a container `/proc/sys` may be read-only, and right nevertheless.
pub(crate) fn set(key: &str, value: &str) -> Result<(), Failure> {
    let path = format!("/proc/sys/net/{key}");
    if small_file::read(path.as_ref()).is_ok_and(|now| now.trim_end() == value) {
        return Ok(());
    }
    small_file::write(path.as_ref(), value).during(Code::Io, || format!("cannot set net/{key} to {value}"))
}

/// Sets a value; an error is ignored, since the value is not vital or this kernel lacks the family.
pub(crate) fn try_set(key: &str, value: &str) {
    let _ = small_file::write(format!("/proc/sys/net/{key}").as_ref(), value);
}
