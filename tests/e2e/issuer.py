"""An issuer that is none of ours: Zitadel's discovery document, key set and token shape, by PyJWT."""

import base64
import time
import uuid
from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

PROJECT = "294645919545032706"
ORGANIZATION = "286399320075272000"
ROLES_CLAIM = f"urn:zitadel:iam:org:project:{PROJECT}:roles"


@dataclass
class Issuer:
    """Signs with one RS256 key; `url` is set once its address is known."""

    url: str = ""
    kid: str = "296393392504438786"
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._discovery),
                Route("/oauth/v2/keys", self._keys),
            ]
        )

    def _discovery(self, _request) -> JSONResponse:
        return JSONResponse(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/oauth/v2/authorize",
                "token_endpoint": f"{self.url}/oauth/v2/token",
                "introspection_endpoint": f"{self.url}/oauth/v2/introspect",
                "jwks_uri": f"{self.url}/oauth/v2/keys",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["EdDSA", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512"],
            }
        )

    def _keys(self, _request) -> JSONResponse:
        numbers = self.key.public_key().public_numbers()
        key = {"use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256"}
        key |= {"n": big_endian(numbers.n), "e": big_endian(numbers.e)}
        return JSONResponse({"keys": [key]}, headers={"cache-control": "max-age=300, must-revalidate"})

    def token(self, subject: str, account: str, roles: tuple[str, ...] = ("end_user",), **claims) -> str:
        """An access token as Zitadel signs it: array audience, `jti`, no scope, no e-mail."""
        now = int(time.time())
        payload = {
            "iss": self.url,
            "sub": subject,
            "aud": [PROJECT],
            "exp": now + 43200,
            "iat": now,
            "nbf": now,
            "client_id": "e2e",
            "jti": f"V2_{uuid.uuid4().int % 10**18}-at_{uuid.uuid4().int % 10**18}",
            ROLES_CLAIM: {role: {ORGANIZATION: "tenant.localhost"} for role in roles},
            "urn:zitadel:iam:user:resourceowner:id": ORGANIZATION,
            "alchemi:account_id": account,
        }
        return jwt.encode(payload | claims, self.key, algorithm="RS256", headers={"kid": self.kid})


def big_endian(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
