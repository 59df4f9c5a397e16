// Zitadel's REST calls by its own descriptors (`google.api.http`): which message a request is, and which its answer.
// A field that the message does not have is an error.
import { create, fromJson, getOption, hasOption, toJson } from '@bufbuild/protobuf';
import { http } from '@zitadel/proto/google/api/annotations_pb.js';
import { ManagementService } from '@zitadel/proto/zitadel/management_pb.js';
import { UserService } from '@zitadel/proto/zitadel/user/v2/user_service_pb.js';

const STRICT = { ignoreUnknownFields: false };

/** `/projects/{project_id}/roles/{role_key=**}` as an expression with named groups. */
function expression(prefix, template) {
  const parts = template.split(/(\{[^}]+\})/).map((part) => {
    const [, name, wild] = /^\{([^=}]+)(=\*\*)?\}$/.exec(part) ?? [];
    return name ? `(?<${name.replaceAll('.', '__')}>${wild ? '.+' : '[^/]+'})` : part.replace(/[.*+?^$()|[\]\\]/g, '\\$&');
  });
  return new RegExp(`^${prefix}${parts.join('')}$`);
}

const ROUTES = [['/management/v1', ManagementService], ['', UserService]].flatMap(([prefix, service]) =>
  service.methods.filter((method) => hasOption(method, http)).flatMap((method) => {
    const rule = getOption(method, http);
    return [rule, ...rule.additionalBindings].map(({ pattern, body }) => ({
      method,
      body,
      verb: pattern.case.toUpperCase(),
      template: prefix + pattern.value,
      expression: expression(prefix, pattern.value),
    }));
  }));

/** The longest template that fits: `_search` is no id. */
function route(verb, path) {
  const fitting = ROUTES.filter((route) => route.verb === verb && route.expression.test(path));
  const literal = ({ template }) => template.replace(/\{[^}]+\}/g, '').length;
  return fitting.sort((one, other) => literal(other) - literal(one))[0];
}

/** Checks a call that was made, and what was answered; gives the method's name. */
export function judge({ method: verb, path, request, status, answer }) {
  const found = route(verb, path);
  if (!found) throw new Error(`Zitadel has no ${verb} ${path}`);
  const captured = Object.entries(found.expression.exec(path).groups ?? {});
  const message = Object.fromEntries(captured.map(([name, value]) => [camelCase(name), decodeURIComponent(value)]));
  const twice = Object.keys(request ?? {}).filter((name) => name in message);
  if (twice.length) throw new Error(`${path}: ${twice} is in the path and in the body`);
  if (!found.body && Object.keys(request ?? {}).length) throw new Error(`${verb} ${path} takes no body`);
  fromJson(found.method.input, { ...message, ...request }, STRICT);
  if (status === 200) fromJson(found.method.output, answer, STRICT);
  return found.method.name;
}

/** Makes a call of the management API v1 out of a message; gives the answer's message. */
export async function call({ url, token }, name, init, organization) {
  const method = ManagementService.methods.find((method) => method.name === name);
  const { pattern, body } = getOption(method, http);
  const message = toJson(method.input, create(method.input, init), { useProtoFieldName: true });
  const path = pattern.value.replace(/\{([^=}]+)(=\*\*)?\}/g, (_, field) => {
    const value = message[field];
    delete message[field];
    return encodeURIComponent(value);
  });
  const response = await fetch(`${url}/management/v1${path}`, {
    method: pattern.case.toUpperCase(),
    headers: {
      authorization: `Bearer ${token}`,
      'content-type': 'application/json',
      ...(organization && { 'x-zitadel-orgid': organization }),
    },
    // camelCase, as the gateway writes it.
    body: body ? JSON.stringify(camel(message)) : undefined,
  });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.message), { status: response.status, answer });
  return fromJson(method.output, answer, STRICT);
}

function camel(value) {
  if (Array.isArray(value)) return value.map(camel);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [camelCase(key), camel(inner)]));
}

function camelCase(name) {
  return name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
}
