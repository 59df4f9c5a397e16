// Zitadel's own descriptors and its official client: they drive the stand-in, and judge alchemi's calls.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { Code, ConnectError } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { NewAuthorizationBearerInterceptor, createClientFor } from '@zitadel/client';
import { TextQueryMethod } from '@zitadel/proto/zitadel/object/v2/object_pb.js';
import { UserService } from '@zitadel/proto/zitadel/user/v2/user_service_pb.js';
import { UserGrantState } from '@zitadel/proto/zitadel/user_pb.js';
import { call, judge } from './rest.mjs';
import { startStandIn } from './stand_in.mjs';

let standIn;

before(async () => {
  standIn = await startStandIn();
});

after(() => standIn?.stop());

/** Judges calls of REST style; gives how many. */
function judged(exchanges, who) {
  const rest = exchanges.filter(({ path }) => !path.startsWith('/zitadel.'));
  const methods = new Set(rest.map(judge));
  console.log(`# ${who}: ${rest.length} REST calls of ${methods.size} methods, no unknown field`);
  return rest.length;
}

async function refused(promise, status, code, id) {
  const error = await promise.then(() => assert.fail('it was not refused'), (error) => error);
  assert.deepEqual([error.status, error.answer.code], [status, code], String(error));
  if (id) assert.equal(error.answer.details[0].id, id);
}

test('the stand-in speaks the management API v1', async () => {
  const { owner, tenant, project: projectId, ada, bob } = standIn;
  const v1 = (name, init, organization = owner) => call(standIn, name, init, organization);
  assert.equal((await v1('GetProjectByID', { id: projectId })).project.details.resourceOwner, owner);
  const role = (roleKey) => v1('AddProjectRole', { projectId, roleKey, displayName: roleKey, group: '' });
  await role('reader');
  await role('writer');
  await refused(role('reader'), 409, 6);
  const roles = await v1('ListProjectRoles', { projectId, query: { limit: 10, asc: true } });
  assert.deepEqual(roles.result.map(({ key }) => key).sort(), ['reader', 'writer']);

  const { grantId } = await v1('AddProjectGrant', { projectId, grantedOrgId: tenant, roleKeys: ['reader'] });
  await v1('UpdateProjectGrant', { projectId, grantId, roleKeys: ['reader', 'writer'] });
  await refused(v1('UpdateProjectGrant', { projectId, grantId, roleKeys: ['reader', 'writer'] }), 400, 9);
  const granted = await v1('ListProjectGrants', { projectId });
  assert.deepEqual(granted.result.map((grant) => [grant.grantId, grant.grantedOrgId]), [[grantId, tenant]]);

  const own = await v1('AddUserGrant', { userId: bob, projectId, roleKeys: ['writer'] });
  const { userGrantId } =
    await v1('AddUserGrant', { userId: ada, projectId, projectGrantId: grantId, roleKeys: ['reader'] }, tenant);
  const again = v1('AddUserGrant', { userId: ada, projectId, projectGrantId: grantId, roleKeys: ['reader'] }, tenant);
  await refused(again, 409, 6);
  const both = { userId: ada, grantId: userGrantId, roleKeys: ['reader', 'writer'] };
  await v1('UpdateUserGrant', both, tenant);
  await refused(v1('UpdateUserGrant', both, tenant), 400, 9, 'COMMAND-Rs8fy');
  const queries = [
    { query: { case: 'projectIdQuery', value: { projectId } } },
    { query: { case: 'userIdQuery', value: { userId: ada } } },
  ];
  const [shown] = (await v1('ListUserGrants', { query: { limit: 10 }, queries }, tenant)).result;
  assert.deepEqual([shown.id, shown.roleKeys, shown.state], [userGrantId, ['reader', 'writer'], UserGrantState.ACTIVE]);
  await v1('RemoveUserGrant', { userId: ada, grantId: userGrantId }, tenant);
  await refused(v1('RemoveUserGrant', { userId: ada, grantId: userGrantId }, tenant), 404, 5);
  assert.ok(own.userGrantId);

  const address = { emailAddress: 'ADA@acme.com', method: TextQueryMethod.EQUALS_IGNORE_CASE };
  const byAddress = { queries: [{ query: { case: 'emailQuery', value: address } }] };
  assert.deepEqual((await v1('ListUsers', byAddress, tenant)).result.map(({ id }) => id), [ada]);
  assert.deepEqual((await v1('ListUsers', byAddress, owner)).result, []);
  assert.ok(judged(await standIn.exchanges(), "Zitadel's descriptors") > 10);
});

test('the stand-in speaks to the official client', async () => {
  const transport = (token) => createConnectTransport({
    baseUrl: standIn.url,
    httpVersion: '1.1',
    useBinaryFormat: false,
    jsonOptions: { ignoreUnknownFields: false },
    interceptors: [NewAuthorizationBearerInterceptor(token)],
  });
  const users = createClientFor(UserService)(transport(standIn.token));
  const address = { emailAddress: 'ada@acme.com', method: TextQueryMethod.EQUALS };
  const queries = [
    { query: { case: 'emailQuery', value: address } },
    { query: { case: 'organizationIdQuery', value: { organizationId: standIn.tenant } } },
  ];
  const found = await users.listUsers({ query: { limit: 10, asc: true }, queries });
  assert.deepEqual(found.result.map(({ userId }) => userId), [standIn.ada]);
  const stranger = createClientFor(UserService)(transport('wrong'));
  const error = await stranger.listUsers({}).then(assert.fail, (error) => ConnectError.from(error));
  assert.equal(error.code, Code.Unauthenticated);
});

test('a call that is not of Zitadel does not pass', () => {
  const said = (method, path, request, answer = {}) => () => judge({ method, path, request, status: 200, answer });
  const roles = '/management/v1/projects/1/roles';
  assert.doesNotThrow(said('POST', roles, { roleKey: 'reader', displayName: 'Reader' }));
  assert.throws(said('POST', roles, { key: 'reader' }), /key "key" is unknown/);
  assert.throws(said('POST', roles, { roleKey: 7 }), /role_key/);
  assert.throws(said('POST', roles, { roleKey: 'reader' }, { id: '1' }), /key "id" is unknown/);
  assert.throws(said('POST', roles, { projectId: '1', roleKey: 'reader' }), /in the path and in the body/);
  assert.throws(said('POST', `${roles}/all`, {}), /Zitadel has no POST/);
});

test("alchemi's calls are Zitadel's", { skip: !process.env.ALCHEMI_EXCHANGES && 'nothing was recorded' }, async () => {
  const exchanges = JSON.parse(await readFile(process.env.ALCHEMI_EXCHANGES, 'utf8'));
  assert.ok(judged(exchanges, 'alchemi') > 0);
});
