// An independent OpenID issuer (oidc-provider) on loopback, with Zitadel's paths and the shape of its tokens. Keys come
// and go, and it can be unreachable: it says nothing that this project wrote about verifying.
import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import Provider, { errors } from 'oidc-provider';

export const PROJECT = '310716200000000001';
const ORG = '310716100000000001';
const SECRET = 'secret-of-the-clients-of-the-contract-tests';

/** A private JWK with a `kid` of its own. */
function key(alg) {
  const { privateKey } = alg === 'ES256'
    ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
    : generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg, kid: randomUUID() };
}

function client(id, more = {}) {
  return {
    client_id: id,
    client_secret: SECRET,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    ...more,
  };
}

function provider(issuer, keys, signing, logoutUri) {
  const made = new Provider(issuer, {
    jwks: { keys },
    // Of several clients, the one that is logged out is told so in ES256.
    clients: [
      client('service'),
      client('leaver', { backchannel_logout_uri: logoutUri, id_token_signed_response_alg: 'ES256' }),
    ],
    scopes: ['openid', 'offline_access'],
    ttl: { ClientCredentials: 3600 },
    // Its own refuses addresses of this machine.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      backchannelLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo(_, resource) {
          const alg = resource.split(':').at(-1).toUpperCase();
          if (!signing[alg]) throw new errors.InvalidTarget();
          return {
            scope: '',
            audience: PROJECT,
            accessTokenTTL: 3600,
            accessTokenFormat: 'jwt',
            jwt: { sign: { alg, kid: signing[alg] } },
          };
        },
      },
    },
    routes: {
      token: '/oauth/v2/token',
      jwks: '/oauth/v2/keys',
      introspection: '/oauth/v2/introspect',
      revocation: '/oauth/v2/revoke',
      userinfo: '/oidc/v1/userinfo',
      authorization: '/oauth/v2/authorize',
    },
    extraTokenClaims: () => ({
      [`urn:zitadel:iam:org:project:${PROJECT}:roles`]: { super_admin: { [ORG]: 'acme.localhost' } },
      'urn:zitadel:iam:user:resourceowner:id': ORG,
    }),
    formats: {
      customizers: {
        // As Zitadel: `typ` is JWT, `aud` is a list, there is `nbf` and no `scope`.
        jwt(_, __, jwt) {
          jwt.header = { ...jwt.header, typ: 'JWT' };
          jwt.payload.aud = [jwt.payload.aud].flat();
          jwt.payload.nbf = jwt.payload.iat;
          delete jwt.payload.scope;
        },
      },
    },
  });
  made.on('server_error', (_, error) => console.error(error));
  return made;
}

export class Issuer {
  #server;
  #handler;
  #keys = [];
  #port = 0;
  keyFetches = 0;

  /** Listens on loopback and makes its first keys. `logoutUri` says where it tells of logouts. */
  static async start() {
    const issuer = new Issuer();
    await issuer.up();
    issuer.rotate();
    return issuer;
  }

  get url() {
    return `http://127.0.0.1:${this.#port}`;
  }

  logsOutAt(uri) {
    this.logoutUri = uri;
    this.#serve();
  }

  /** New keys that sign from now on; the former stay published. */
  rotate() {
    this.signing = {};
    for (const alg of ['RS256', 'ES256']) {
      const made = key(alg);
      this.#keys.unshift(made);
      this.signing[alg] = made.kid;
    }
    this.#serve();
  }

  /** Unpublishes every key that no longer signs. */
  withdraw() {
    const active = Object.values(this.signing);
    this.#keys = this.#keys.filter(({ kid }) => active.includes(kid));
    this.#serve();
  }

  #serve() {
    this.provider = provider(this.url, this.#keys, this.signing, this.logoutUri ?? `${this.url}/none`);
    this.#handler = this.provider.callback();
  }

  async up() {
    this.#server = createServer((request, response) => {
      if (request.url === '/oauth/v2/keys') this.keyFetches += 1;
      this.#handler(request, response);
    });
    await new Promise((resolve) => this.#server.listen(this.#port, '127.0.0.1', resolve));
    this.#port = this.#server.address().port;
  }

  async down() {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  /** An access token of a client, by client credentials at the token endpoint. */
  async token(alg, id = 'service') {
    const response = await fetch(`${this.url}/oauth/v2/token`, {
      method: 'POST',
      headers: { authorization: `Basic ${Buffer.from(`${id}:${SECRET}`).toString('base64')}` },
      body: new URLSearchParams({ grant_type: 'client_credentials', resource: `urn:alchemi:${alg.toLowerCase()}` }),
    });
    const body = await response.json();
    if (!response.ok) throw new Error(`${response.status} ${JSON.stringify(body)}`);
    return body.access_token;
  }

  /** Tells `leaver` that `subject` has signed out. */
  async logOut(subject, session) {
    const leaver = await this.provider.Client.find('leaver');
    await leaver.backchannelLogout(subject, session);
  }
}
