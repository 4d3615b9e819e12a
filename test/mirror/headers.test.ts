import t from 'tap'
import { contentRange } from '../../src/mirror/answers.js'
import { parseChallenge } from '../../src/mirror/challenge.js'
import { HostList, hostsOf } from '../../src/mirror/hosts.js'
import { RateLimits, retryAfterOf } from '../../src/mirror/rate-limit.js'

t.test('AU-01 to AU-03: challenges', async (t) => {
  const bearer = { scheme: 'bearer', realm: 'https://a/token', service: 'b', scope: 'repository:c:pull' }
  for (const header of [
    'Bearer realm="https://a/token",service="b",scope="repository:c:pull"',
    'bearer  realm="https://a/token" , service=b, Scope="repository:c:pull", error="x"',
    'Basic realm="x, Bearer realm=\\"evil\\"", Bearer realm="https://a/token",service="b",scope="repository:c:pull"',
    'Negotiate, Bearer realm="https:\\/\\/a/token",service="b",scope="repository:c:pull"',
    ['Basic realm="x"', 'Bearer realm="https://a/token",service="b",scope="repository:c:pull"'],
  ]) {
    t.strictSame(parseChallenge(header), bearer, String(header))
  }
  t.strictSame(parseChallenge('Basic realm="x"'), { scheme: 'basic' })
  for (const header of [
    undefined,
    '',
    'Bearer',
    'Bearer service="b"',
    'Digest realm="x"',
    '"',
    ',,,',
    `Bearer realm="${'x'.repeat(5000)}"`,
  ]) {
    t.equal(parseChallenge(header), undefined, String(header).slice(0, 40))
  }
  for (const piece of ['\\', ' ,', 'a=', '"', 'a ', 'Bearer realm='])
    parseChallenge(piece.repeat(4096 / piece.length))
})

t.test('RL-02: limits and when to come back', async (t) => {
  t.equal(retryAfterOf({ 'retry-after': '5' }), 5000)
  t.equal(retryAfterOf({ 'retry-after': '999999999999' }), 6 * 3600 * 1000)
  const date = retryAfterOf({ 'retry-after': new Date(Date.now() + 10_000).toUTCString() }) ?? 0
  t.ok(date > 8000 && date <= 10_000)
  t.equal(retryAfterOf({ 'retry-after': 'Thu, 01 Jan 1970 00:00:00 GMT' }), 0)
  for (const value of [undefined, '', 'soon', '-', ['1', '2']])
    t.equal(retryAfterOf({ 'retry-after': value }), undefined)
  const limits = new RateLimits()
  limits.read({})
  t.equal(limits.last, undefined)
  limits.read({ 'ratelimit-limit': '200;w=21600', 'ratelimit-remaining': 'many' })
  t.strictSame(limits.last, { limit: 200, remaining: undefined })
  t.equal(limits.exceeded({}) > 20_000, true, 'a 429 that does not say is obeyed for a while')
})

t.test('ranges', async (t) => {
  t.strictSame(contentRange({ 'content-range': 'bytes 5-9/10' }), { first: 5, last: 9, size: 10 })
  t.strictSame(contentRange({ 'content-range': 'bytes 5-9/*' }), { first: 5, last: 9, size: undefined })
  for (const text of [
    'bytes 9-5/10',
    'bytes 0-10/10',
    'bytes */10',
    'bytes 0-9999999999999999/*',
    'items 0-1/2',
    '',
  ]) {
    t.equal(contentRange({ 'content-range': text }), undefined, text)
  }
})

t.test('hosts, and what goes with well-known ones', async (t) => {
  const list = new HostList(['a.test', 'b.test:5000', '*.c.test'])
  for (const url of [
    'https://a.test',
    'http://a.test',
    'https://b.test:5000',
    'https://x.c.test',
    'https://x.y.c.test',
  ]) {
    t.ok(list.has(new URL(url)), url)
  }
  for (const url of [
    'https://a.test:444',
    'https://b.test',
    'https://c.test',
    'https://xc.test',
    'https://x.c.test:1',
    'https://a.test.',
    'https://x.a.test',
    'https://c.test.evil.test',
  ]) {
    t.notOk(list.has(new URL(url)), url)
  }
  t.strictSame(hostsOf(new URL('https://registry-1.docker.io')).realms, ['auth.docker.io'])
  t.ok(hostsOf(new URL('https://eu.gcr.io')).redirectHosts.includes('storage.googleapis.com'))
  for (const url of [
    'http://registry-1.docker.io',
    'https://registry-1.docker.io:5000',
    'https://registry-1.docker.io.evil.test',
  ]) {
    t.strictSame(hostsOf(new URL(url)), { realms: [], redirectHosts: [] }, url)
  }
})
