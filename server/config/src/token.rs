//! `--auth-token`: which tokens users get.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::values;

/// How long a signed token is good for, when the flag does not say it.
const SIGNED_TTL: Duration = Duration::from_secs(300);
/// How tokens may be signed.
const METHODS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256", "HS384", "HS512",
];

/// Which tokens users get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthToken {
    /// Random ones, which members know of each other.
    Simple,
    /// Signed ones, which say what they are worth.
    Jwt(Jwt),
}

/// How tokens are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// The algorithm, by its name in tokens.
    pub method: String,
    /// The file with the key by which tokens are checked; it may be missing beside the private one.
    pub public_key: Option<PathBuf>,
    /// The file with the key that signs, or with the shared secret; without it no token is given.
    pub private_key: Option<PathBuf>,
    /// How long a token is good for.
    pub ttl: Duration,
}

impl AuthToken {
    /// Reads the flag's value.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub(crate) fn parse(text: &str, warnings: &mut Vec<String>) -> Result<Self, String> {
        let wrong = |what: &str| format!("--auth-token[{text}]: {what}");
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options = BTreeMap::new();
        for part in parts {
            let pair = part.split_once('=').filter(|(_, v)| !v.contains('='));
            let (key, value) = pair.ok_or_else(|| wrong("options are written as key=value"))?;
            if options.insert(key, value).is_some() {
                return Err(wrong(&format!("{key} is there twice")));
            }
        }
        match kind {
            "simple" => Ok(Self::Simple),
            "jwt" => Jwt::parse(options, warnings)
                .map_or_else(|e| Err(wrong(&e)), |jwt| Ok(Self::Jwt(jwt))),
            "" => Err(wrong("nobody could log in; say simple or jwt")),
            _ => Err(wrong("there are simple and jwt")),
        }
    }
}

impl Jwt {
    fn parse(
        mut options: BTreeMap<&str, &str>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, String> {
        let method = options.remove("sign-method").unwrap_or_default().to_owned();
        if !METHODS.contains(&method.as_str()) {
            return Err(format!("sign-method must be one of {}", METHODS.join(", ")));
        }
        let mut file = |name| {
            let file = options.remove(name).filter(|file| !file.is_empty());
            file.map(PathBuf::from)
        };
        let (public_key, private_key) = (file("pub-key"), file("priv-key"));
        let secret = method.starts_with("HS");
        if secret && private_key.is_none() {
            return Err(format!(
                "{method} needs a shared secret: give priv-key=FILE"
            ));
        }
        if public_key.is_none() && private_key.is_none() {
            return Err(format!(
                "{method} needs a key: give priv-key=FILE, or pub-key=FILE to only check tokens"
            ));
        }
        let ttl = match options.remove("ttl").unwrap_or_default() {
            "" => SIGNED_TTL,
            text => values::duration(text).ok_or("ttl is no duration, as 10m is one")?,
        };
        if !options.is_empty() {
            let unknown: Vec<&str> = options.into_keys().collect();
            warnings.push(format!("--auth-token has no option {}", unknown.join(", ")));
        }
        Ok(Self {
            method,
            public_key,
            private_key,
            ttl,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_simple_or_signed() {
        let mut warnings = Vec::new();
        let mut parse = |text: &str| AuthToken::parse(text, &mut warnings);
        assert_eq!(parse("simple"), Ok(AuthToken::Simple));
        let text = "jwt,pub-key=/a/pub,priv-key=/a/priv,sign-method=RS256,ttl=10m,later=1";
        let jwt = Jwt {
            method: "RS256".to_owned(),
            public_key: Some("/a/pub".into()),
            private_key: Some("/a/priv".into()),
            ttl: Duration::from_secs(600),
        };
        assert_eq!(parse(text), Ok(AuthToken::Jwt(jwt)));
        for (text, told) in [
            ("", "say simple or jwt"),
            ("other", "there are simple and jwt"),
            ("jwt", "sign-method must be one of"),
            ("jwt,sign-method=none", "sign-method must be one of"),
            ("jwt,sign-method=RS256", "or pub-key=FILE"),
            ("jwt,sign-method=HS256", "give priv-key=FILE"),
            ("jwt,sign-method", "key=value"),
            ("jwt,a=b=c", "key=value"),
            ("jwt,a=1,a=1", "a is there twice"),
            (
                "jwt,sign-method=HS256,priv-key=a,ttl=x",
                "ttl is no duration",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        assert_eq!(warnings, ["--auth-token has no option later"]);
    }
}
