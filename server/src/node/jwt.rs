//! Signed tokens: they say who they are for and at which revision of the auth store they were
//! given, so no member has to remember them. They are etcd's, byte for byte in what is signed, and
//! each takes the other's.

use std::{path::Path, sync::Arc, time::Duration, time::UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwap;
use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{
        self, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
        ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING,
        ED25519, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, ParsedPublicKey, RsaEncoding,
        RsaKeyPair, VerificationAlgorithm,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use state::AuthInfo;
use tracing::{info, warn};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);
/// The longest file of a key, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The shortest RSA key that is secure.
const MIN_RSA_BYTES: usize = 2048 / 8;

/// Signs and checks tokens, always with the keys that are in the files.
pub(crate) struct Signer {
    options: config::Jwt,
    method: Method,
    keys: ArcSwap<Keys>,
    /// Of the files that were looked at last, whether or not they could be used.
    seen: Mutex<[u8; 32]>,
}

/// An algorithm of RFC 7518.
#[derive(Clone, Copy)]
enum Method {
    Secret(hmac::Algorithm),
    Rsa {
        check: &'static dyn VerificationAlgorithm,
        sign: &'static dyn RsaEncoding,
    },
    Ec {
        check: &'static dyn VerificationAlgorithm,
        sign: &'static EcdsaSigningAlgorithm,
    },
    Ed,
}

enum Keys {
    Secret(Box<hmac::Key>),
    Pair {
        check: ParsedPublicKey,
        /// Without it tokens come from elsewhere.
        sign: Option<Private>,
    },
}

enum Private {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// The files of the keys, read.
struct Files {
    public: Option<Vec<u8>>,
    private: Option<Vec<u8>>,
}

impl Signer {
    /// Reads the keys.
    ///
    /// # Errors
    /// A file that cannot be read, holds no key of the method, or keys that are no pair.
    pub fn load(options: &config::Jwt) -> anyhow::Result<Self> {
        let method = Method::named(&options.method)
            .with_context(|| format!("there is no sign-method {}", options.method))?;
        let files = Files::read(options)?;
        let keys = method.keys(&files)?;
        Ok(Self {
            options: options.clone(),
            method,
            keys: ArcSwap::from_pointee(keys),
            seen: Mutex::new(files.digest()),
        })
    }

    /// Follows the files for ever. Tokens of a key that was replaced are not good any more, so
    /// clients log in again.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL).await;
            let signer = Arc::clone(&self);
            // It only fails when the process ends.
            let _ = tokio::task::spawn_blocking(move || signer.refresh()).await;
        }
    }

    /// Takes keys into use that are new. Those that cannot be used, as halves of a new pair, leave
    /// the old ones in use.
    fn refresh(&self) {
        let refused = |error: &anyhow::Error| {
            warn!(
                error = format!("{error:#}"),
                "could not use the new keys of tokens; the old ones stay in use"
            );
        };
        let files = match Files::read(&self.options) {
            Ok(files) => files,
            Err(error) => {
                // Told once.
                if std::mem::take(&mut *self.seen.lock()) != [0; 32] {
                    refused(&error);
                }
                return;
            }
        };
        let found = files.digest();
        if std::mem::replace(&mut *self.seen.lock(), found) == found {
            return;
        }
        match self.method.keys(&files) {
            Ok(keys) => {
                self.keys.store(Arc::new(keys));
                info!(method = self.options.method, "reloaded the keys of tokens");
            }
            Err(error) => refused(&error),
        }
    }

    /// A token for a user, given at a revision of the auth store and at a time since the epoch;
    /// `None` without a key that signs.
    pub fn sign(&self, user: &str, revision: u64, now: Duration) -> Option<String> {
        let header = format!(r#"{{"alg":"{}","typ":"JWT"}}"#, self.options.method);
        let claims = serde_json::json!({
            "exp": now.saturating_add(self.options.ttl).as_secs(),
            "revision": revision,
            "username": user,
        });
        let [header, claims] =
            [header, claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = format!("{header}.{claims}");
        let signature = self.keys.load().sign(signed.as_bytes())?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Who a token is for; `None` when it is not good, or not any more.
    pub fn user_of(&self, token: &str) -> Option<AuthInfo> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        match self.read(token, now) {
            Ok(user) => Some(user),
            Err(error) => {
                warn!(%error, "a token is not good");
                None
            }
        }
    }

    fn read(&self, token: &str, now: Duration) -> anyhow::Result<AuthInfo> {
        let (signed, signature) = token.rsplit_once('.').context("it has no signature")?;
        let (header, claims) = signed.split_once('.').context("it has two parts")?;
        ensure!(!claims.contains('.'), "it has more than three parts");
        let object = |part: &str| -> anyhow::Result<Map<String, Value>> {
            Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
        };
        // The method is the flag's and never the token's word.
        let method = object(header)?;
        let method = method.get("alg").and_then(Value::as_str);
        ensure!(
            method == Some(self.options.method.as_str()),
            "it is signed by another method"
        );
        let signature = URL_SAFE_NO_PAD.decode(signature)?;
        let keys = self.keys.load();
        ensure!(
            keys.is_signature(signed.as_bytes(), &signature),
            "its signature is not of this key"
        );
        let claims = object(claims)?;
        let now = now.as_secs_f64();
        if let Some(end) = time(&claims, "exp")? {
            ensure!(now < end, "its time is over");
        }
        if let Some(begin) = time(&claims, "nbf")? {
            ensure!(now >= begin, "its time has not begun");
        }
        let username = claims.get("username").and_then(Value::as_str);
        let revision = claims.get("revision").and_then(Value::as_f64);
        Ok(AuthInfo {
            username: username.context("it names no user")?.to_owned(),
            revision: revision.context("it says no revision")? as u64,
        })
    }
}

/// A moment of which a token speaks, in whole seconds since the epoch. Zero says nothing, as in
/// etcd's library.
fn time(claims: &Map<String, Value>, name: &str) -> anyhow::Result<Option<f64>> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64();
    let seconds = seconds.with_context(|| format!("{name} is no number"))?;
    Ok((seconds != 0.0).then(|| seconds.trunc()))
}

impl Method {
    fn named(name: &str) -> Option<Self> {
        use signature as s;
        let rsa = |check, sign| Self::Rsa { check, sign };
        Some(match name {
            "HS256" => Self::Secret(hmac::HMAC_SHA256),
            "HS384" => Self::Secret(hmac::HMAC_SHA384),
            "HS512" => Self::Secret(hmac::HMAC_SHA512),
            "RS256" => rsa(&s::RSA_PKCS1_2048_8192_SHA256, &s::RSA_PKCS1_SHA256),
            "RS384" => rsa(&s::RSA_PKCS1_2048_8192_SHA384, &s::RSA_PKCS1_SHA384),
            "RS512" => rsa(&s::RSA_PKCS1_2048_8192_SHA512, &s::RSA_PKCS1_SHA512),
            "PS256" => rsa(&s::RSA_PSS_2048_8192_SHA256, &s::RSA_PSS_SHA256),
            "PS384" => rsa(&s::RSA_PSS_2048_8192_SHA384, &s::RSA_PSS_SHA384),
            "PS512" => rsa(&s::RSA_PSS_2048_8192_SHA512, &s::RSA_PSS_SHA512),
            "ES256" => Self::Ec {
                check: &ECDSA_P256_SHA256_FIXED,
                sign: &ECDSA_P256_SHA256_FIXED_SIGNING,
            },
            "ES384" => Self::Ec {
                check: &ECDSA_P384_SHA384_FIXED,
                sign: &ECDSA_P384_SHA384_FIXED_SIGNING,
            },
            "ES512" => Self::Ec {
                check: &ECDSA_P521_SHA512_FIXED,
                sign: &ECDSA_P521_SHA512_FIXED_SIGNING,
            },
            "EdDSA" => Self::Ed,
            _ => return None,
        })
    }

    /// The keys of this method that files hold.
    fn keys(self, files: &Files) -> anyhow::Result<Keys> {
        let check = match self {
            Self::Secret(algorithm) => {
                let secret = files.private.as_deref().unwrap_or_default();
                ensure!(!secret.is_empty(), "the file priv-key is empty");
                return Ok(Keys::Secret(Box::new(hmac::Key::new(algorithm, secret))));
            }
            Self::Rsa { check, .. } | Self::Ec { check, .. } => check,
            Self::Ed => &ED25519,
        };
        let sign = files.private.as_deref().map(|file| self.private(file));
        let sign = sign.transpose().context("priv-key")?;
        let own = sign.as_ref().map(Private::public);
        let given = files.public.as_deref().map(public_bytes);
        let given = given.transpose().context("pub-key")?;
        let Some(bytes) = given.or(own) else {
            bail!("there is neither pub-key nor priv-key");
        };
        let check = ParsedPublicKey::new(check, bytes)
            .map_err(|_| anyhow::anyhow!("pub-key is no key for this sign-method"))?;
        let keys = Keys::Pair { check, sign };
        // A pair that is none would give tokens that nobody takes.
        if let Some(signature) = keys.sign(b"pair") {
            ensure!(
                keys.is_signature(b"pair", &signature),
                "pub-key and priv-key are no pair"
            );
        }
        Ok(keys)
    }

    fn private(self, file: &[u8]) -> anyhow::Result<Private> {
        let der = pem::parse(file).context("it is not in PEM form")?;
        let der = der.contents();
        let wrong = |_| anyhow::anyhow!("it is no private key for this sign-method");
        match self {
            Self::Rsa { sign, .. } => {
                let key = RsaKeyPair::from_der(der).or_else(|_| RsaKeyPair::from_pkcs8(der));
                let key = key.map_err(wrong)?;
                ensure!(
                    key.public_modulus_len() >= MIN_RSA_BYTES,
                    "an RSA key needs 2048 bits"
                );
                Ok(Private::Rsa(key, sign))
            }
            Self::Ec { sign, .. } => {
                let key = EcdsaKeyPair::from_private_key_der(sign, der);
                let key = key.or_else(|_| EcdsaKeyPair::from_pkcs8(sign, der));
                Ok(Private::Ec(key.map_err(wrong)?))
            }
            // Those that other programs make hold no public key.
            Self::Ed => {
                let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
                Ok(Private::Ed(key.map_err(wrong)?))
            }
            Self::Secret(_) => bail!("a secret is no private key"),
        }
    }
}

/// The public key of a file in PEM form: the key alone, or a certificate of it.
fn public_bytes(file: &[u8]) -> anyhow::Result<Vec<u8>> {
    let block = pem::parse(file).context("it is not in PEM form")?;
    if block.tag() != "CERTIFICATE" {
        return Ok(block.into_contents());
    }
    let certificate = Certificate::from_der(block.contents())?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    Ok(key.to_der()?)
}

impl Private {
    fn public(&self) -> Vec<u8> {
        use signature::KeyPair;
        match self {
            Self::Rsa(key, _) => key.public_key().as_ref().to_vec(),
            Self::Ec(key) => key.public_key().as_ref().to_vec(),
            Self::Ed(key) => key.public_key().as_ref().to_vec(),
        }
    }
}

impl Keys {
    /// `None` without a key that signs.
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let key = match self {
            Self::Secret(key) => return Some(hmac::sign(key, message).as_ref().to_vec()),
            Self::Pair { sign, .. } => sign.as_ref()?,
        };
        let signature = match key {
            Private::Rsa(key, method) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let signed = key.sign(*method, &random, message, &mut signature);
                signed.map(|()| signature)
            }
            Private::Ec(key) => key.sign(&random, message).map(|s| s.as_ref().to_vec()),
            Private::Ed(key) => Ok(key.sign(message).as_ref().to_vec()),
        };
        let signature = signature.inspect_err(|_| warn!("could not sign a token"));
        signature.ok()
    }

    fn is_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Self::Pair { check, .. } => check.verify_sig(message, signature).is_ok(),
        }
    }
}

impl Files {
    fn read(options: &config::Jwt) -> anyhow::Result<Self> {
        let read = |path: &Option<std::path::PathBuf>| path.as_deref().map(read).transpose();
        Ok(Self {
            public: read(&options.public_key)?,
            private: read(&options.private_key)?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for file in [&self.public, &self.private] {
            let file = file.as_deref().unwrap_or_default();
            digest.update((file.len() as u64).to_le_bytes());
            digest.update(file);
        }
        digest.finalize().into()
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = || format!("could not read {}", path.display());
    let length = std::fs::metadata(path).with_context(file)?.len();
    ensure!(
        length <= MAX_FILE_BYTES,
        "{} is too long for a key",
        path.display()
    );
    std::fs::read(path).with_context(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn options(method: &str, folder: &Path, secret: &str) -> config::Jwt {
        let file = folder.join("secret");
        std::fs::write(&file, secret).unwrap();
        config::Jwt {
            method: method.to_owned(),
            public_key: None,
            private_key: Some(file),
            ttl: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_signed_token_is_good_until_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::load(&options("HS256", folder.path(), "of two")).unwrap();
        let token = signer.sign("ann", 7, NOW).unwrap();
        let ann = AuthInfo {
            username: "ann".to_owned(),
            revision: 7,
        };
        assert_eq!(signer.read(&token, NOW).unwrap(), ann);
        assert_eq!(
            signer.read(&token, NOW + Duration::from_secs(59)).unwrap(),
            ann
        );
        let late = signer.read(&token, NOW + Duration::from_secs(60));
        assert!(late.unwrap_err().to_string().contains("over"));
        // What etcd signs.
        let claims = token.split('.').nth(1).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
        assert_eq!(claims, br#"{"exp":1000060,"revision":7,"username":"ann"}"#);
        for cut in 0..token.len() {
            signer.read(&token[..cut], NOW).unwrap_err();
            let mut other = token.clone().into_bytes();
            other[cut] ^= 1;
            if let Ok(other) = String::from_utf8(other) {
                signer.read(&other, NOW).unwrap_err();
            }
        }
    }

    #[test]
    fn a_token_cannot_choose_its_method() {
        let folder = tempfile::tempdir().unwrap();
        let long = Signer::load(&options("HS512", folder.path(), "of two")).unwrap();
        let token = long.sign("root", 1, NOW).unwrap();
        let short = Signer::load(&options("HS256", folder.path(), "of two")).unwrap();
        let error = short.read(&token, NOW).unwrap_err();
        assert!(error.to_string().contains("another method"), "{error}");
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let claims = token.split('.').nth(1).unwrap();
        short.read(&format!("{none}.{claims}."), NOW).unwrap_err();
    }

    #[test]
    fn claims_are_read_as_etcd_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::load(&options("HS256", folder.path(), "of two")).unwrap();
        let read = |claims: &str| {
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
            let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
            let signature = signer.keys.load().sign(signed.as_bytes()).unwrap();
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
            signer.read(&token, NOW).map(|user| user.revision)
        };
        for good in [
            r#"{"username":"a","revision":7}"#,
            r#"{"username":"a","revision":7.9,"exp":0,"nbf":0,"more":[1]}"#,
            r#"{"username":"a","revision":7,"exp":1000001.5,"nbf":1000000}"#,
        ] {
            assert_eq!(read(good).unwrap(), 7, "{good}");
        }
        for bad in [
            r#"{"username":"a"}"#,
            r#"{"revision":7}"#,
            r#"{"username":1,"revision":7}"#,
            r#"{"username":"a","revision":"7"}"#,
            r#"{"username":"a","revision":7,"exp":1000000}"#,
            r#"{"username":"a","revision":7,"exp":"2000000"}"#,
            r#"{"username":"a","revision":7,"exp":null}"#,
            r#"{"username":"a","revision":7,"nbf":1000001}"#,
            "[]",
            "{",
        ] {
            read(bad).unwrap_err();
        }
    }

    #[test]
    fn new_keys_come_into_use() {
        let folder = tempfile::tempdir().unwrap();
        let options = options("HS256", folder.path(), "old");
        let signer = Signer::load(&options).unwrap();
        let old = signer.sign("ann", 7, NOW).unwrap();
        let secret = options.private_key.clone().unwrap();
        for unusable in [Some(""), None] {
            match unusable {
                Some(text) => std::fs::write(&secret, text).unwrap(),
                None => std::fs::remove_file(&secret).unwrap(),
            }
            signer.refresh();
            assert_eq!(signer.sign("ann", 7, NOW).unwrap(), old);
        }
        std::fs::write(&secret, "new").unwrap();
        signer.refresh();
        signer.read(&old, NOW).unwrap_err();
        let new = signer.sign("ann", 7, NOW).unwrap();
        signer.read(&new, NOW).unwrap();
        Signer::load(&config::Jwt {
            method: "RS256".to_owned(),
            ..options
        })
        .map(|_| ())
        .unwrap_err();
    }
}
