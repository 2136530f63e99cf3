//! The versions of the specification.

use super::{Code, Failure};
use crate::contract::json::Object;

/// A version that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(crate) const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// The version of a configuration; one that names none is of the first.
    pub(crate) fn of(conf: &Object) -> Result<Self, Failure> {
        let Some(text) = conf.text("cniVersion")? else { return Ok(Self::V0_1_0) };
        if let Some(version) = Self::ALL.into_iter().find(|v| v.as_str() == text) {
            return Ok(version);
        }
        let numbers = text.split('.').filter(|part| part.parse::<u32>().is_ok()).count();
        if numbers != 3 || text.split('.').count() != 3 {
            return Err(Failure::new(
                Code::Decoding,
                format!("cniVersion {text:?} is not of the form 1.0.0"),
            ));
        }
        Err(Failure::new(Code::Version, format!("cniVersion {text} is not supported"))
            .details(format!("supported are {}", Self::list())))
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// All of them for people.
    pub(crate) fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Version, Code> {
        Version::of(&Object::parse("the test", text.as_bytes()).unwrap()).map_err(|f| f.code)
    }

    #[test]
    fn a_configuration_without_a_version_is_of_the_first() {
        assert_eq!(of("{}"), Ok(Version::V0_1_0));
        assert_eq!(of(r#"{"cniVersion":""}"#), Ok(Version::V0_1_0));
        assert_eq!(of(r#"{"CNIVersion":"0.3.1"}"#), Ok(Version::V0_3_1));
    }

    #[test]
    fn an_unknown_version_and_an_unreadable_one_have_codes_of_their_own() {
        assert_eq!(of(r#"{"cniVersion":"1.2.0"}"#), Err(Code::Version));
        assert_eq!(of(r#"{"cniVersion":"1.0"}"#), Err(Code::Decoding));
        assert_eq!(of(r#"{"cniVersion":"latest"}"#), Err(Code::Decoding));
        assert_eq!(of(r#"{"cniVersion":1}"#), Err(Code::Decoding));
    }
}
