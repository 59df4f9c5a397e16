// A real Zitadel, when there is one: ZITADEL_LIVE_URL is its address, ZITADEL_LIVE_PROJECT_ID a project of it,
// ZITADEL_LIVE_KEY_FILE the key file of a service user who has a role in that project, whose tokens are JWTs. It writes
// nothing there. With ZITADEL_LIVE_API_ID and ZITADEL_LIVE_API_SECRET (an application of type API of the project),
// introspection is tried too.
import assert from 'node:assert/strict';
import { createPrivateKey, sign } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { startGateway } from './gateway.mjs';

const {
  ZITADEL_LIVE_URL: url,
  ZITADEL_LIVE_PROJECT_ID: project,
  ZITADEL_LIVE_KEY_FILE: keyFile,
  ZITADEL_LIVE_API_ID: apiId,
  ZITADEL_LIVE_API_SECRET: apiSecret,
} = process.env;
const options = { skip: !url && 'ZITADEL_LIVE_URL is not set' };
let gateway;

before(async () => {
  if (!url) return;
  assert.ok(project && keyFile, 'ZITADEL_LIVE_URL needs ZITADEL_LIVE_PROJECT_ID and ZITADEL_LIVE_KEY_FILE');
  gateway = await startGateway('', {
    ZITADEL_ISSUER: url,
    ZITADEL_PROJECT_ID: project,
    ...(apiId && { ZITADEL_INTROSPECTION_CLIENT_ID: apiId, ZITADEL_INTROSPECTION_CLIENT_SECRET: apiSecret }),
  });
});

after(() => gateway?.stop());

async function token(scopes) {
  const { userId, keyId, key } = JSON.parse(await readFile(keyFile, 'utf8'));
  const now = Math.floor(Date.now() / 1000);
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const input = [{ alg: 'RS256', kid: keyId }, { iss: userId, sub: userId, aud: url, iat: now, exp: now + 300 }]
    .map(encode).join('.');
  const signature = sign('RSA-SHA256', Buffer.from(input), createPrivateKey(key)).toString('base64url');
  const { token_endpoint: endpoint } = await (await fetch(`${url}/.well-known/openid-configuration`)).json();
  const response = await fetch(endpoint, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'urn:ietf:params:oauth:grant-type:jwt-bearer',
      assertion: `${input}.${signature}`,
      scope: ['openid', ...scopes].join(' '),
    }),
  });
  const body = await response.json();
  assert.ok(response.ok, JSON.stringify(body));
  return body.access_token;
}

async function context(token) {
  const response = await fetch(`${gateway.url}/v1/me/context`, { headers: { authorization: `Bearer ${token}` } });
  return { status: response.status, body: await response.json() };
}

const AUDIENCE = `urn:zitadel:iam:org:project:id:${project}:aud`;
const ROLES = 'urn:zitadel:iam:org:projects:roles';

test('a token of a real Zitadel is accepted with its roles', options, async () => {
  const access = await token([AUDIENCE, ROLES]);
  assert.equal(access.split('.').length, 3, 'set the access token type of the service user to JWT');
  const { status, body } = await context(access);
  assert.equal(status, 200, JSON.stringify(body));
  assert.ok(body.roles.length > 0, 'the service user has no role in the project');
});

test('a token of a real Zitadel for another audience is not', options, async () => {
  const { status, body } = await context(await token([]));
  assert.deepEqual([status, body.code], [401, 'token_invalid']);
});

test('without the scope of the roles there are none', options, async () => {
  const { status, body } = await context(await token([AUDIENCE]));
  assert.deepEqual([status, body.roles], [200, []]);
});

test('a real Zitadel tells an opaque token from nonsense', { skip: options.skip || (!apiId && 'no ZITADEL_LIVE_API_ID') }, async () => {
  const { status, body } = await context('an-opaque-token-that-nobody-issued');
  assert.deepEqual([status, body.code], [401, 'token_invalid'], JSON.stringify(body));
});
