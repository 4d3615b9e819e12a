import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import {
  blob,
  descriptor,
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  isError,
  manifestOf,
  newRepository,
  OCI_INDEX,
  OCI_MANIFEST,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  randomBlob,
  randomDigest,
  scratchDir,
  startServer,
} from './harness.js'

const scratch = scratchDir(t)
const around = join(scratch, 'around')
mkdirSync(around)
const canary = 'canary-that-nobody-may-read'
for (const name of ['canary', 'passwd', 'blobs', 'boathouse.db.bak'])
  writeFileSync(join(around, name), canary)
const server = await startServer(t, { data: join(around, 'data') })

const repository = newRepository('hostile')
const someImage = image()
await push(server, repository, 'latest', someImage)
const [config, layer] = someImage.parts as [
  (typeof someImage.parts)[number],
  (typeof someImage.parts)[number],
]

const names = [
  '__proto__',
  'constructor',
  'hasOwnProperty',
  'toString',
  'valueOf',
  'prototype',
  '__defineGetter__',
]

/** Sends one request line as it stands, on a connection of its own. */
async function raw(line: string, headers: string[] = [], body = '') {
  const connection = await RawConnection.open(server)
  await connection.request(line, [...headers, 'Connection: close'], body)
  await connection.closed
  return { text: connection.text, status: connection.replies()[0]?.status ?? 0, connection }
}

t.test('S70, G-06: no mutant of a path reaches a file or causes a 5xx', async (t) => {
  const hex = layer.digest.slice(7)
  const climbs = [
    '..',
    '%2e%2e',
    '.%2e',
    '%2E.',
    '..%2f..',
    '..%5c..',
    '..\\..',
    '%252e%252e',
    '%c0%ae%c0%ae',
    '....//',
  ]
  const digests = [
    ...climbs.flatMap((climb) => [
      `sha256:${climb}/${climb}/canary`,
      `sha256:${climb}%2f${climb}%2fcanary`,
      `${climb}:${hex}`,
      `sha256%3A${climb}%2Fcanary`,
    ]),
    ...[
      `sha256:${hex}/../../canary`,
      `sha256:${hex}%2f..%2f..%2fcanary`,
      `sha256:${hex}%00.txt`,
      `sha256:${hex}.`,
    ],
    ...[
      `sha256:${hex.toUpperCase()}`,
      `sha256:${hex}0`,
      `sha256:${hex.slice(1)}`,
      `sha512:${hex}`,
      `SHA256:${hex}`,
    ],
    ...[`sha256:${hex}%20`, `sha256:%20${hex}`, `sha256:${hex}%0a`, `sha256:${hex}%0d%0aX: y`],
    ...[
      `sha256::${hex}`,
      `sha256:${hex}:`,
      `:${hex}`,
      'sha256:',
      ':',
      '%',
      '%%',
      '%u002e',
      '%ff',
      '%f0%9f%98%80',
    ],
    ...[
      `sha256-${hex}`,
      `sha256/${hex}`,
      `sha256:${'0'.repeat(100_000).slice(0, 20_000)}`,
      '*',
      '?',
      '~',
      '$HOME',
    ],
    ...names,
    ...names.map((name) => `${name}:${hex}`),
    ...[
      'sha256:*',
      'sha256:$(id)',
      'sha256:`id`',
      "sha256:' or 1=1--",
      'sha256:%27%20or%201%3d1--',
      'file:canary',
    ],
  ]
  const paths = [
    ...digests.flatMap((digest) => [
      `/v2/${repository}/blobs/${digest}`,
      `/v2/${repository}/manifests/${digest}`,
      `/v2/${repository}/referrers/${digest}`,
      `/v2/${repository}/blobs/uploads/${digest}`,
    ]),
    ...climbs.flatMap((climb) => [
      `/v2/${climb}/blobs/${layer.digest}`,
      `/v2/${repository}/${climb}/${repository}/blobs/${layer.digest}`,
      `/${climb}/${climb}/etc/passwd`,
      `/v2/${climb}/${climb}/around/canary`,
      `//${climb}/v2/${repository}/tags/list`,
      `/v2/${repository}/blobs/${climb}/canary`,
    ]),
    ...[
      '/%2F%2F..%2F..%2Fetc/passwd',
      '///etc/passwd',
      '/v2//etc/passwd',
      '/v2/%2fetc/passwd',
      '/./v2/',
      '/v2/./',
    ],
    ...[
      '/v2/..',
      '/v2/../healthz',
      '/v2/%00',
      '/v2/a%00b/tags/list',
      '/v2/\\..\\..\\canary',
      '/v2/C:/x/tags/list',
    ],
  ]
  const good = new Set([200, 204])
  for (const path of paths) {
    for (const method of ['GET', 'DELETE']) {
      // A space would end the request target: those are malformed requests, and refused as such.
      const { text, status } = await raw(`${method} ${path}`)
      t.ok(status >= 400 && status < 500, `${method} ${path.slice(0, 120)}: ${status}`)
      if (!(status >= 400 && status < 500) && !good.has(status)) t.comment(text.slice(0, 300))
      if (text.includes(canary)) t.fail(`${path} gave the canary`)
    }
  }
  for (const name of ['canary', 'passwd', 'blobs', 'boathouse.db.bak'])
    t.equal(readFileSync(join(around, name), 'utf8'), canary, `${name} is untouched`)
  t.same(filesBelow(around).filter((file) => !file.startsWith('data/')).length, 4, 'nothing was added')
})

t.test('S70, UP-23: a digest that climbs does not write outside, in any verb that takes one', async (t) => {
  const bad = ['sha256:../../x', '../../../x', 'sha256:..%2F..%2Fx', '%2e%2e%2fx', `sha256:${'g'.repeat(64)}`]
  for (const digest of bad) {
    const post = `/v2/${repository}/blobs/uploads/?digest=${digest}`
    isError(t, await server.request('POST', post, { body: 'x' }), 400, 'DIGEST_INVALID')
    const mount = `/v2/${repository}/blobs/uploads/?mount=${digest}&from=${repository}`
    t.equal((await server.request('POST', mount)).status, 202)
    const algorithm = `/v2/${repository}/blobs/uploads/?digest-algorithm=${digest}`
    isError(t, await server.request('POST', algorithm), 400, 'DIGEST_INVALID')
    const put = await server.request('PUT', `/v2/${repository}/manifests/x?tag=${digest}`, { body: '{}' })
    t.equal(put.status, 400)
  }
  t.notOk(existsSync(join(around, 'x')))
  t.equal(filesBelow(around).filter((file) => !file.startsWith('data/')).length, 4)
})

t.test('S58, G-02: names made to keep a pattern busy are refused', async (t) => {
  const long = [
    `${'a'.repeat(28)}!`,
    `${'a'.repeat(250)}_`,
    `${'a-'.repeat(120)}!`,
    `${'a__'.repeat(80)}!`,
    'a/'.repeat(10_000),
    `${'a.'.repeat(12_000)}b`,
    '-'.repeat(20_000),
    `${'0'.repeat(255)}0`,
  ]
  for (const name of long) {
    isError(t, await server.request('GET', `/v2/${name}/tags/list`), 400, 'NAME_INVALID', name.slice(0, 20))
  }
  const tag = 'a'.repeat(20_000)
  isError(t, await server.request('GET', `/v2/${repository}/manifests/${tag}`), 400, 'TAG_INVALID')
})

t.test('S56: __proto__ and its like are headers, queries, tags and names like others', async (t) => {
  for (const name of names) {
    const lines = [`${name}: x`, `${name}: y`, 'x-http-method-override: DELETE']
    const { status } = await raw(`GET /v2/${repository}/manifests/latest?${name}=1&${name}=2`, lines)
    t.equal(status, 200, `header ${name}`)
    const tag = name
    t.equal((await server.request('GET', `/v2/${repository}/manifests/${tag}`)).status, 404, `tag ${tag}`)
    t.equal((await putManifest(server, repository, tag, someImage)).status, 201, `push of tag ${tag}`)
    const got = await server.request('GET', `/v2/${repository}/manifests/${tag}`)
    t.equal(got.header('docker-content-digest'), someImage.digest)
    const folded = name.toLowerCase().replaceAll(/^_+|_+$/g, '')
    await push(server, `${folded}/x`, name, image({ layers: [] }))
    await push(server, `proto/${folded}`, 'x', image({ layers: [] }))
    t.equal((await server.request('GET', `/v2/${name}/tags/list`)).status, name === folded ? 404 : 400)
    const range = await server.request('GET', `/v2/${repository}/blobs/${layer.digest}`, {
      headers: { Range: name, 'If-None-Match': name, 'If-Range': name, Accept: name },
    })
    t.equal(range.status, 200)
    const type = await server.request('PUT', `/v2/${repository}/manifests/x`, {
      headers: { 'Content-Type': name },
      body: '{"schemaVersion":2}',
    })
    isError(t, type, 400, 'MANIFEST_INVALID')
  }
})

t.test('S56, MF-07: __proto__ and its like as members of a manifest change nothing', async (t) => {
  const base = someImage.bytes.toString().slice(0, -1)
  for (const name of names) {
    const harmless = manifestOf(
      `${base},"${name}":{"schemaVersion":1,"layers":[]},"annotations":{"${name}":"x"}}`,
    )
    t.equal((await putManifest(server, repository, 'odd', harmless)).status, 201, name)
    const got = await server.request('GET', `/v2/${repository}/manifests/odd`)
    t.ok(got.body.equals(harmless.bytes))
  }
  const hidden = `{"schemaVersion":2,"__proto__":{"config":${JSON.stringify(descriptor(config))},"layers":[]}}`
  isError(t, await putManifest(server, repository, 'odd', manifestOf(hidden)), 400, 'MANIFEST_INVALID')
  const spread = `{"schemaVersion":2,"mediaType":"${OCI_INDEX}","__proto__":{"manifests":[]}}`
  isError(
    t,
    await putManifest(server, repository, 'odd', manifestOf(spread, OCI_INDEX)),
    400,
    'MANIFEST_INVALID',
  )
})

t.test('S52, MF-07: a manifest that could be read as two things is refused', async (t) => {
  const c = JSON.stringify(descriptor(config))
  const l = JSON.stringify(descriptor(layer))
  const image = `"schemaVersion":2,"config":${c},"layers":[${l}]`
  const texts = [
    `{${image},"manifests":[]}`,
    `{${image},"manifests":[${l}]}`,
    `{${image},"fsLayers":[]}`,
    `{${image},"layers":[]}`,
    `{"layers":[],${image}}`,
    `{${image},"l\\u0061yers":[]}`,
    `{${image},"schemaVersion":2}`,
    `{${image},"mediaType":"${OCI_MANIFEST}","mediaType":"${OCI_MANIFEST}"}`,
    `{${image},"mediaType":"${OCI_MANIFEST}","media\\u0054ype":"${OCI_INDEX}"}`,
    `{"schemaVersion":2,"config":${c.slice(0, -1)},"digest":"${randomDigest()}"},"layers":[]}`,
    `{"schemaVersion":2,"config":${c},"layers":[${l.slice(0, -1)},"size":1}]}`,
    `{${image},"annotations":{"a":"1","a":"2"}}`,
    `{${image},"x":[{"y":{"z":1,"z":2}}]}`,
  ]
  for (const text of texts)
    isError(t, await putManifest(server, repository, 'two', manifestOf(text)), 400, 'MANIFEST_INVALID', text)
  const both = `{"schemaVersion":2,"manifests":[],"layers":[${l}],"config":${c}}`
  for (const type of [OCI_INDEX, OCI_MANIFEST]) {
    const reply = await putManifest(server, repository, 'two', manifestOf(both, type))
    isError(t, reply, 400, 'MANIFEST_INVALID', type)
  }
  isError(t, await putManifest(server, repository, 'two', manifestOf(both), {}), 400, 'MANIFEST_INVALID')
  const same = `{${image},"a":{"b":1},"c":{"b":1},"d":[{"b":1},{"b":1}],"e":"\\"a\\":1,\\"a\\":2"}`
  t.equal(
    (await putManifest(server, repository, 'fine', manifestOf(same))).status,
    201,
    'the same name elsewhere',
  )
})

t.test(
  'S55: JSON that is deep, wide or long is refused in time, and the server answers meanwhile',
  async (t) => {
    const base = someImage.bytes.toString().slice(0, -1)
    const nested = (depth: number, open: string, close: string) => open.repeat(depth) + close.repeat(depth)
    const texts: [string, string][] = [
      ...[100, 5000, 50_000, 1_000_000].flatMap((depth): [string, string][] => [
        [`${depth} arrays`, `${base},"x":${nested(depth, '[', ']')}}`],
        [`${depth} open arrays`, `${base},"x":${'['.repeat(depth)}`],
      ]),
      ...[100, 5000, 200_000].map((depth): [string, string] => [
        `${depth} objects`,
        `${base},"x":${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}}`,
      ]),
      ['only brackets', '['.repeat(4_000_000)],
      ['only quotes', '"'.repeat(3_000_001)],
      ['only backslashes', `"${'\\'.repeat(3_000_000)}`],
      ['escaped quotes', `{"${'\\"'.repeat(1_500_000)}`],
      ['digits', '9'.repeat(4_000_000)],
      ['white space', ' '.repeat(4_000_000)],
      ['commas', `{${','.repeat(4_000_000)}`],
    ]
    for (const [what, text] of texts) {
      const [reply, meanwhile] = await Promise.all([
        putManifest(server, repository, 'deep', manifestOf(text)),
        server.request('GET', '/v2/', { fresh: true }),
      ])
      isError(t, reply, 400, 'MANIFEST_INVALID', what)
      t.equal(meanwhile.status, 200)
    }
  },
)

t.test('S55, MF-07: a manifest may nest as deep as 64 levels, not deeper', async (t) => {
  const base = someImage.bytes.toString().slice(0, -1)
  const nested = (levels: number) =>
    manifestOf(`${base},"x":${'['.repeat(levels - 1)}${']'.repeat(levels - 1)}}`)
  t.equal((await putManifest(server, repository, 'deep', nested(64))).status, 201)
  isError(t, await putManifest(server, repository, 'deep', nested(65)), 400, 'MANIFEST_INVALID')
})

t.test('S55: many members and long texts within 4 MiB are taken', async (t) => {
  const base = someImage.bytes.toString().slice(0, -1)
  const many = Array.from({ length: 250_000 }, (_, n) => `"k${n}":1`).join(',')
  const texts: [string, string][] = [
    ['a quarter of a million members', `${base},"x":{${many}}}`],
    ['a million numbers', `${base},"x":[${'1,'.repeat(1_000_000)}1]}`],
    ['a text of a million characters', `${base},"annotations":{"x":"${'é'.repeat(1_000_000)}"}}`],
  ]
  for (const [what, text] of texts) {
    const reply = await putManifest(server, repository, 'wide', manifestOf(text))
    t.equal(reply.status, 201, what)
  }
})

t.test('S55: bytes that are not UTF-8, marks and odd characters are refused', async (t) => {
  const base = someImage.bytes.toString().slice(0, -1)
  const bodies: [string, Buffer][] = [
    ['a byte order mark', Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), someImage.bytes])],
    ['UTF-16', Buffer.from(someImage.bytes.toString(), 'utf16le')],
    ['a lone byte', Buffer.concat([Buffer.from(`${base},"x":"`), Buffer.from([0xff]), Buffer.from('"}')])],
    [
      'an overlong form',
      Buffer.concat([Buffer.from(`${base},"x":"`), Buffer.from([0xc0, 0xae]), Buffer.from('"}')]),
    ],
    [
      'a raw surrogate',
      Buffer.concat([Buffer.from(`${base},"x":"`), Buffer.from('eda080', 'hex'), Buffer.from('"}')]),
    ],
    ['a raw NUL', Buffer.from(`${base},"x":"\0"}`)],
    ['a raw line end', Buffer.from(`${base},"x":"\n"}`)],
    ['a comment', Buffer.from(`${base}/* x */}`)],
    ['a comma at the end', Buffer.from(`${base},}`)],
    ['NaN', Buffer.from(`${base},"x":NaN}`)],
    ['Infinity', Buffer.from(`${base},"x":Infinity}`)],
    ['a leading zero', Buffer.from(`${base},"x":01}`)],
    ['a hexadecimal number', Buffer.from(`${base},"x":0x1}`)],
    ['a bad escape', Buffer.from(`${base},"x":"\\x41"}`)],
    ['a short escape', Buffer.from(`${base},"x":"\\u12"}`)],
  ]
  for (const [what, bytes] of bodies)
    isError(t, await putManifest(server, repository, 'odd', manifestOf(bytes)), 400, 'MANIFEST_INVALID', what)
})

t.test(
  'S55, MF-01: lone surrogates as escapes are text like others and come back as they were',
  async (t) => {
    const base = someImage.bytes.toString().slice(0, -1)
    const manifest = manifestOf(`${base},"annotations":{"a":"\\ud800","b":"\\udc00\\ud83d"}}`)
    const reply = await putManifest(server, repository, 'lone', manifest)
    t.equal(reply.status, 201)
    const got = await server.request('GET', `/v2/${repository}/manifests/lone`)
    t.ok(got.body.equals(manifest.bytes))
  },
)

t.test(
  'S57: a hundred odd Content-Types of a manifest: 201 for its own type or none, 400 for others',
  async (t) => {
    const odd = [
      ...[
        'application/json\ta',
        `${OCI_MANIFEST}\ta`,
        `${OCI_MANIFEST};`,
        `${OCI_MANIFEST};;`,
        `${OCI_MANIFEST}; =`,
      ],
      ...[
        `${OCI_MANIFEST}; charset`,
        `${OCI_MANIFEST};charset="`,
        `,${OCI_MANIFEST}`,
        `${OCI_MANIFEST},`,
        ';',
        '=',
        '"',
      ],
      ...[
        'a',
        '/',
        'a/',
        '/a',
        'a/b/c',
        'a/b; c=d; c=e',
        '\t',
        '*/*',
        'multipart/form-data',
        'x'.repeat(8000),
      ],
      ...[
        `${OCI_MANIFEST}${' '.repeat(5000)};x`,
        `${';'.repeat(5000)}`,
        `a/${'b;'.repeat(3000)}`,
        OCI_MANIFEST.toUpperCase(),
      ],
      ...Array.from({ length: 70 }, (_, n) => `${OCI_MANIFEST}${String.fromCharCode(33 + n)}${n}`),
    ]
    for (const type of odd) {
      const reply = await putManifest(server, repository, 'typed', someImage, { 'Content-Type': type })
      const bare = type.split(';', 1)[0]?.trim().toLowerCase()
      const expected = bare === '' || bare === OCI_MANIFEST ? 201 : 400
      t.equal(reply.status, expected, type.slice(0, 100))
    }
  },
)

t.test('S51: lengths that lie are found out', async (t) => {
  const { bytes } = someImage
  const short = await RawConnection.open(server)
  const headers = [`Content-Type: ${OCI_MANIFEST}`]
  await short.request(
    `PUT /v2/${repository}/manifests/lie`,
    [...headers, `Content-Length: ${bytes.length + 10}`],
    bytes,
  )
  await short.abort()
  const large = await RawConnection.open(server)
  await large.request(
    `PUT /v2/${repository}/manifests/lie`,
    [...headers, 'Content-Length: 999999999999'],
    bytes,
  )
  t.equal((await large.reply()).status, 413, 'refused by the length alone')
  await large.close()
  t.equal((await server.request('GET', `/v2/${repository}/manifests/lie`)).status, 404)
})

t.test('S50: hostile queries of the lists are answered in time and in form', async (t) => {
  const lists = [`/v2/${repository}/tags/list`, '/v2/_catalog']
  const values = [
    `${'9'.repeat(10_000)}`,
    '-9223372036854775809',
    '1;drop%20table%20tags',
    '%27',
    '%00',
    '%ff',
    '[]',
    '{}',
  ]
  for (const list of lists) {
    for (const value of values) {
      for (const query of [
        `n=${value}`,
        `last=${value}`,
        `n=1&last=${value}`,
        `n[]=${value}`,
        `n=${value}&n=1`,
      ]) {
        const reply = await server.request('GET', `${list}?${query}`)
        const n = new URLSearchParams(query).get('n')
        const expected = n === null || /^\d+$/.test(n) ? 200 : 400
        t.equal(reply.status, expected, `${list} ${query.slice(0, 40)}`)
      }
    }
  }
  const many = Array.from({ length: 3000 }, (_, n) => `a${n}=b`).join('&')
  for (const list of lists) t.equal((await server.request('GET', `${list}?${many}`)).status, 200)
})

t.test('S50: hostile Range and condition headers are answered in form', async (t) => {
  const path = `/v2/${repository}/blobs/${layer.digest}`
  const ranges: [range: string, status: number][] = [
    [`bytes=${'0-,'.repeat(8000)}`, 400],
    [`bytes=${','.repeat(20_000)}`, 400],
    [`bytes=${'9'.repeat(20_000)}-`, 416],
    [`bytes=-${'9'.repeat(20_000)}`, 206],
    [`bytes=${' '.repeat(20_000)}0-1`, 206],
    ['bytes=0-1,', 200],
    ['bytes=,0-1', 200],
    ['bytes=0-0,-0,5-1', 416],
    ['bytes=0-,0-,0-', 400], // more than the content twice over
  ]
  for (const [range, status] of ranges) {
    const reply = await server.request('GET', path, { headers: { Range: range } })
    t.equal(reply.status, status, range.slice(0, 30))
  }
  for (const value of [`${'"x",'.repeat(6000)}`, `W/${'"'.repeat(9000)}`, `"${'\\'.repeat(9000)}`]) {
    for (const header of ['If-None-Match', 'If-Match', 'If-Range']) {
      const reply = await server.request('GET', path, { headers: { [header]: value } })
      t.equal(reply.status, 200, `${header}: ${value.slice(0, 20)}`)
    }
  }
})

t.test('S63, E-03: what the client sent cannot break a line of the answer or of the log', async (t) => {
  const before = server.stderr().length
  const paths = ['/v2/%0d%0aX-Injected:%20yes/tags/list', '/v2/a%0a%7b%22forged%22%3atrue%7d/tags/list']
  for (const path of [
    ...paths,
    '/v2/%1b%5b31m/tags/list',
    `/v2/${repository}/manifests/%0d%0aSet-Cookie:x`,
  ]) {
    const { text } = await raw(`GET ${path}`)
    t.notMatch(text, /\n(X-Injected|Set-Cookie)/i)
  }
  const type = `a/b${'x'.repeat(3000)}`
  const reply = await putManifest(server, repository, 'x', manifestOf('{"schemaVersion":2}'), {
    'Content-Type': type,
  })
  t.ok(reply.body.length < 2000, 'long input is not sent back whole')
  const lines = server.stderr().slice(before).split('\n').filter(Boolean)
  for (const line of lines) {
    t.doesNotThrow(() => JSON.parse(line), 'each line of the log is JSON')
    t.notMatch(line, /^\{"forged"/)
    t.notMatch(line, new RegExp(String.fromCharCode(27)), 'no terminal sequences')
  }
})

t.test('S55: no line of the log grows with what was sent', async (t) => {
  await server.request('GET', `/v2/${'a'.repeat(25_000)}/tags/list?${'b'.repeat(5000)}`, {
    headers: { 'User-Agent': 'u'.repeat(500) },
  })
  const longest = Math.max(
    ...server
      .stderr()
      .split('\n')
      .map((line) => line.length),
  )
  t.ok(longest < 4096, `the longest line has ${longest} characters`)
})

t.test('S29: SQL in every place changes nothing', async (t) => {
  const injections = [
    "' or '1'='1",
    "'; drop table manifests; --",
    '" union select 1 --',
    '%',
    '_',
    '\\',
    "x'||'y",
  ]
  for (const injection of injections) {
    const text = encodeURIComponent(injection)
    for (const path of [
      `/v2/${text}/tags/list`,
      `/v2/${repository}/manifests/${text}`,
      `/v2/${repository}/tags/list?last=${text}`,
      `/v2/_catalog?last=${text}`,
      `/v2/${repository}/referrers/${randomDigest()}?artifactType=${text}`,
    ]) {
      const reply = await server.request('GET', path)
      t.ok(reply.status < 500, `${path}: ${reply.status}`)
      if (path.includes('referrers')) t.same(reply.json<{ manifests: [] }>().manifests, [])
    }
  }
})

t.test('S74: a repository that is called like a file of the store harms nothing', async (t) => {
  for (const name of ['boathouse.db', 'blobs/sha256', 'uploads', 'lock.db', 'sha256', 'boathouse.db-wal']) {
    const pushed = image()
    await push(server, name, 'boathouse.db', pushed)
    const got = await server.request('GET', `/v2/${name}/manifests/boathouse.db`)
    t.ok(got.body.equals(pushed.bytes), name)
  }
})

t.test(
  'S103, G-09: whatever cannot be read as a request is answered in the one shape, logged and counted',
  async (t) => {
    const countOf = async () => {
      const { text } = await server.request('GET', '/metrics')
      const lines = text.match(/^boathouse_http_requests_total\{route="none",[^}]*\} \d+$/gm) ?? []
      return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
    }
    const lines = () => server.logs().filter((line) => line.msg === 'request' && line.route === 'none').length
    const heads = [
      ...[
        '/%zz',
        '/auth/%ff',
        '/%',
        '/healthz/%',
        '/%76%32/a/manifests/%zz',
        '/v2/a/manifests/%zz',
        '//v2/',
        '/v2/#x',
      ].map((path) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n`),
      ...['ftp://x/v2/', '*', 'x', 'http://localhost'].map(
        (target) => `GET ${target} HTTP/1.1\r\nHost: localhost\r\n`,
      ),
      ...[
        'GET /nothing-here',
        'GET /v2/ HTTP/9.9',
        'NO_METHOD / HTTP/1.1',
        'PRI * HTTP/2.0',
        '\x16\x03\x01\x02',
        '{"json":1}',
      ].map((line) => `${line}\r\nHost: localhost\r\n`),
      'CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n',
      'GET /v2/ HTTP/1.1\r\nno colon\r\n',
      'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n',
      'POST /v2/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: what\r\n',
      'PUT /v2/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n',
    ]
    for (const head of heads) {
      const counted = await countOf()
      const logged = lines()
      const connection = await RawConnection.open(server)
      await connection.send(`${head}Connection: close\r\n\r\n`)
      await connection.closed
      const [reply, ...more] = connection.replies()
      const what = JSON.stringify(head)
      t.same(more, [], what)
      t.ok(
        reply !== undefined && reply.status >= 400 && reply.status < 500,
        `${what}: ${connection.text.slice(0, 40)}`,
      )
      t.match(reply?.headers['content-type'], /^application\/json$/, what)
      t.match(reply?.body, /^\{"errors":\[\{"code":"[A-Z_]+","message":"[^"]+"\}\]\}$/, what)
      await eventually(`a line of the log for ${what}`, () => lines() === logged + 1)
      t.equal(await countOf(), counted + 1, `${what} is counted`)
    }
  },
)

t.test('S103: a body in a coding besides chunked is refused, and not taken as it is', async (t) => {
  const connection = await RawConnection.open(server)
  const head = ['Transfer-Encoding: gzip, chunked', 'Content-Type: application/octet-stream']
  const { digest, bytes } = randomBlob(100)
  const body = Buffer.concat([Buffer.from('64\r\n'), bytes, Buffer.from('\r\n0\r\n\r\n')])
  await connection.request(`POST /v2/${repository}/blobs/uploads/?digest=${digest}`, head, body)
  const reply = await connection.reply()
  t.match(reply, { status: 400, body: /"REQUEST_INVALID".*chunked/ })
  t.equal((await server.request('HEAD', `/v2/${repository}/blobs/${digest}`)).status, 404)
  await connection.closed
  const other = await RawConnection.open(server)
  await other.request(`POST /v2/${repository}/blobs/uploads/`, ['Transfer-Encoding: what'], body)
  await other.closed
  t.match(other.replies(), [{ status: 400, body: /"REQUEST_INVALID"/ }])
  t.equal(other.replies().length, 1, 'with one answer')
})

t.test('S103, S95: a burst of requests makes no line that is not ours', async (t) => {
  const before = server.stderr().length
  const connection = await RawConnection.open(server)
  await connection.send(`GET /v2/${repository}/tags/list HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(40))
  await connection.waitForReplies(40)
  await connection.close()
  await eventually('all are in the log', () => server.stderr().slice(before).split('tags/list').length > 40)
  for (const line of server.stderr().slice(before).split('\n').filter(Boolean)) {
    t.doesNotThrow(() => JSON.parse(line), line.slice(0, 100))
  }
})

t.test(
  'S93: a web page of somebody else changes nothing here, and reads nothing under a name of its own',
  async (t) => {
    const content = randomBlob()
    const ask = (method: string, headers: Record<string, string>) => {
      const path = `/v2/foreign/blobs/uploads/?digest=${content.digest}`
      return method === 'POST'
        ? server.request('POST', path, { headers, body: content.bytes })
        : server.request(method, '/v2/', { headers })
    }
    const own = `localhost:${server.port}`
    const refused: Record<string, string>[] = [
      { Origin: 'https://evil.example' },
      { Origin: 'null' },
      { Origin: '' },
      { Origin: 'http://localhost:1' },
      { Origin: `http://${own}.evil.example`, Host: own },
      { Origin: `http://${own}@evil.example`, Host: own },
      { Origin: 'http://evil.example:5000', Host: 'evil.example:5000' },
    ]
    for (const headers of refused) {
      isError(t, await ask('POST', headers), 403, 'DENIED', JSON.stringify(headers))
      for (const method of ['PUT', 'PATCH', 'DELETE']) {
        const reply = await server.request(method, `/v2/${repository}/manifests/latest`, { headers })
        t.equal(reply.status, 403, `${method} ${JSON.stringify(headers)}`)
      }
    }
    for (const host of [
      'evil.example',
      'evil.example:5000',
      'localhost.evil.example',
      '127.0.0.1.nip.io',
      '8.8.8.8',
      '[2001:db8::1]:5000',
      'evil.example.',
      'evil.local',
      'evil.internal:5000',
      'docker.internal',
      'evil.lan',
      'a b',
      'x@localhost',
    ]) {
      for (const method of ['GET', 'HEAD', 'POST']) {
        isError(t, await ask(method, { Host: host }), 403, 'DENIED', `${method} as ${host}`)
      }
    }
    t.equal(
      (await server.request('GET', `/v2/${repository}/manifests/latest`)).status,
      200,
      'nothing was deleted',
    )
    t.equal((await server.request('GET', '/v2/foreign/tags/list')).status, 404, 'nothing was pushed')

    const served = [
      'localhost',
      own,
      'LOCALHOST.',
      'x.localhost',
      '127.0.0.1',
      '127.8.9.1:5000',
      '[::1]:5000',
      'registry:5000',
    ]
    const around = [
      'host.docker.internal:5000',
      'host.containers.internal',
      `${hostname().split('.', 1)[0]}.local`,
      '172.17.0.1:5000',
      '192.168.65.2',
      hostname(),
    ]
    for (const host of [...served, ...around]) t.equal((await ask('POST', { Host: host })).status, 201, host)
    for (const origin of [`http://${own}`, `https://${own}`]) {
      t.equal((await ask('POST', { Host: own, Origin: origin })).status, 201, 'a page of the registry itself')
    }
    t.equal(
      (await ask('GET', { Origin: 'https://evil.example' })).status,
      200,
      'its answer is hidden by the browser',
    )
  },
)

t.test(
  'S93: publicUrl names the registry; with logins any name will do, and a foreign page still may not',
  async (t) => {
    const named = await startServer(t, {
      config: { publicUrl: 'https://registry.example.com', auth: 'none' },
    })
    const name = { Host: 'registry.example.com' }
    t.equal((await named.request('GET', '/v2/', { headers: name })).status, 200)
    t.equal((await named.request('GET', '/v2/', { headers: { Host: 'other.example.com' } })).status, 403)
    const page = { Origin: 'https://registry.example.com', Host: 'localhost' }
    t.equal((await named.request('POST', '/v2/a/blobs/uploads/', { headers: page })).status, 202)

    const closed = await startServer(t, { config: { auth: 'token' } })
    t.equal((await closed.request('GET', '/v2/', { headers: { Host: 'any.example' } })).status, 401)
    const foreign = { Origin: 'https://evil.example' }
    isError(t, await closed.request('POST', '/v2/a/blobs/uploads/', { headers: foreign }), 403, 'DENIED')
  },
)

t.test('E-01: after all of this the server serves what it had', async (t) => {
  const got = await server.request('GET', `/v2/${repository}/manifests/latest`)
  t.ok(got.body.equals(someImage.bytes))
  const bytes = await server.request('GET', `/v2/${repository}/blobs/${layer.digest}`)
  t.ok(bytes.body.equals(layer.bytes))
  const more = randomBlob()
  await pushBlobs(server, repository, more, blob('x'))
  t.equal((await server.request('GET', '/readyz')).status, 200)
  const exit = await server.stop()
  t.same(exit, { code: 0, signal: null }, 'and stops in order')
})

everyReplyKeptTheRules(t)
