import { readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { settingsHelp } from '../config/help.js'
import { ConfigError, loadConfig } from '../config/load.js'
import type { MirrorConfig } from '../config/mirrors.js'
import { readYaml } from '../config/read-yaml.js'
import { type Config, mirrorSettings } from '../config/schema.js'
import { selfSigned } from './certificate.js'
import { scratchDir } from './harness.js'

const example = fileURLToPath(new URL('../../config/boathouse.example.yaml', import.meta.url))
const canary = 'pA55-canary'

/** Loads a file with this text. */
function load(t: Test, yaml: string, env: Record<string, string> = {}): Config {
  const config = join(scratchDir(t), 'boathouse.yaml')
  writeFileSync(config, yaml)
  return loadConfig({ flags: { config }, env, readYaml })
}

/** The faults of a file, without its folder; none of them may show the canary. */
function faultsOf(t: Test, yaml: string, env: Record<string, string> = {}): string[] {
  try {
    load(t, yaml, env)
    return []
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    t.notOk(error.message.includes(canary), `no secret is shown: ${error.message}`)
    return error.faults.map((fault) => fault.replaceAll(/[^\s"]*\/boathouse\.yaml/g, 'boathouse.yaml'))
  }
}

type Written = Readonly<Record<string, unknown>>

const inYaml = (...mirrors: readonly unknown[]) => `mirrors: ${JSON.stringify(mirrors)}\n`

/** The only mirror that these settings make. */
function mirrorOf(t: Test, written: Written, env: Record<string, string> = {}): MirrorConfig {
  const [mirror] = load(t, inYaml(written), env).mirrors
  if (mirror === undefined) throw new Error('there is no mirror')
  return mirror
}

/** The faults of one mirror called docker.io with these settings beside. */
function faultsOfOne(t: Test, written: Written, env: Record<string, string> = {}): string[] {
  return faultsOf(t, inYaml({ name: 'docker.io', ...written }), env)
}

const login = { username: 'alice', password: canary }

// ---------------------------------------------------------------------------------------------
// What mirrors resolve to
// ---------------------------------------------------------------------------------------------

t.test('a mirror needs nothing but a name', async (t) => {
  t.strictSame(mirrorOf(t, { name: 'docker.io' }), {
    name: 'docker.io',
    urls: ['https://registry-1.docker.io'],
    namespaces: ['docker.io', 'index.docker.io', 'registry-1.docker.io'],
    username: undefined,
    password: undefined,
    passwordFile: undefined,
    dockerConfig: undefined,
    allow: ['**'],
    deny: [],
    freshness: 300_000,
    budget: undefined,
    bareNames: false,
    onUpstreamDeleted: 'keep',
    realms: [],
    redirects: [],
    addresses: [],
    ca: undefined,
    public: false,
    connectTimeout: 3000,
    idleTimeout: 30_000,
    sync: undefined,
  })
  t.match(mirrorOf(t, { name: 'ghcr.io' }), { urls: ['https://ghcr.io'], namespaces: ['ghcr.io'] })
  t.match(mirrorOf(t, { name: 'hub' }), { urls: ['https://hub'], namespaces: ['hub'] })
})

t.test('everything that a mirror can be told', async (t) => {
  const ca = join(scratchDir(t), 'ca.pem')
  writeFileSync(ca, `# a comment\n${selfSigned().certificate}\n${selfSigned().certificate}`)
  const mirror = mirrorOf(t, {
    name: 'corp/cache',
    url: ['HTTPS://Registry.corp:5000/', 'http://127.0.0.1:5001/base/path/'],
    namespaces: ['Registry.corp:5000', '[::1]:5000'],
    ...login,
    allow: 'team/**,base/*',
    deny: ['team/secret'],
    freshness: '0s',
    budget: '10GB',
    bareNames: true,
    onUpstreamDeleted: 'drop',
    realms: ['auth.corp', 'auth.corp:8443'],
    redirects: ['cdn.corp:444', '*.Example.com'],
    addresses: ['10.0.0.0/8', '::1'],
    ca,
    public: 'true',
    connectTimeout: '1s',
    idleTimeout: '2m',
    sync: {
      schedule: '*/10 0 3 * * MON-FRI',
      images: [
        { repository: 'base/debian', tags: ['12*', 'latest'], platforms: ['linux/amd64', 'linux/arm/v7'] },
        { repository: 'team/app', tags: '*' },
      ],
    },
  })
  t.strictSame(mirror, {
    name: 'corp/cache',
    urls: ['https://registry.corp:5000', 'http://127.0.0.1:5001/base/path'],
    namespaces: ['registry.corp:5000', '[::1]:5000'],
    username: 'alice',
    password: canary,
    passwordFile: undefined,
    dockerConfig: undefined,
    allow: ['team/**', 'base/*'],
    deny: ['team/secret'],
    freshness: 0,
    budget: 1e10,
    bareNames: true,
    onUpstreamDeleted: 'drop',
    realms: ['auth.corp', 'auth.corp:8443'],
    redirects: ['cdn.corp:444', '*.example.com'],
    addresses: ['10.0.0.0/8', '::1'],
    ca,
    public: true,
    connectTimeout: 1000,
    idleTimeout: 120_000,
    sync: {
      schedule: '*/10 0 3 * * MON-FRI',
      images: [
        { repository: 'base/debian', tags: ['12*', 'latest'], platforms: ['linux/amd64', 'linux/arm/v7'] },
        { repository: 'team/app', tags: ['*'], platforms: [] },
      ],
    },
  })
  const known: unknown = JSON.parse(JSON.stringify(mirror))
  t.same(known, Object.fromEntries(Object.entries(mirror).filter(([, value]) => value !== undefined)))
  const isFrozen = (value: unknown): boolean =>
    typeof value !== 'object' ||
    value === null ||
    (Object.isFrozen(value) && Object.values(value).every(isFrozen))
  t.ok(isFrozen(mirror), 'in all its parts')
})

t.test('the list can be a variable with JSON, which replaces that of the file', async (t) => {
  const env = { BOATHOUSE_MIRRORS: '[{"name": "quay.io"}, {"name": "ghcr.io", "public": true}]' }
  t.match(load(t, inYaml({ name: 'docker.io' }), env).mirrors, [{ name: 'quay.io' }, { public: true }])
  t.strictSame(load(t, inYaml({ name: 'docker.io' }), { BOATHOUSE_MIRRORS: '[]' }).mirrors, [])
  const fault =
    'BOATHOUSE_MIRRORS is a single value: write a list of mirrors, or one as JSON in the variable.'
  for (const text of [`[{"password": "${canary}"`, `"${canary}"`, canary, '5', 'true']) {
    t.strictSame(faultsOf(t, '', { BOATHOUSE_MIRRORS: text }), [fault], text)
  }
  t.strictSame(faultsOf(t, '', { BOATHOUSE_MIRRORS: `{"password": "${canary}"}` }), [
    'BOATHOUSE_MIRRORS is a section: write a list of mirrors, or one as JSON in the variable.',
  ])
  t.strictSame(faultsOf(t, '', { BOATHOUSE_MIRRORS: '[{"name": "quay.io", "urll": 1}, {"name": "A"}]' }), [
    'mirrors[0].urll in BOATHOUSE_MIRRORS is not a setting: did you mean mirrors[0].url?',
    'mirrors[1].name in BOATHOUSE_MIRRORS is "A": write lower-case path components such as docker.io or corp/cache.',
  ])
})

t.test('YAML anchors serve several mirrors', async (t) => {
  const yaml = 'mirrors:\n  - name: docker.io\n    allow: &a [library/**]\n  - name: quay.io\n    allow: *a\n'
  t.match(load(t, yaml).mirrors, [{ allow: ['library/**'] }, { allow: ['library/**'] }])
})

t.test('the mirrors of the example are good ones', async (t) => {
  const lines = readFileSync(example, 'utf8').split('\n')
  const from = lines.indexOf('# mirrors:')
  const yaml = lines.slice(from, lines.indexOf('', from)).map((line) => line.replace(/^# /, ''))
  const { mirrors } = load(t, yaml.join('\n'), { HUB_TOKEN: canary })
  t.strictSame(
    mirrors.map(({ name }) => name),
    ['docker.io', 'ghcr.io', 'corp'],
  )
  t.equal(mirrors[0]?.password, canary)
})

t.test('the help describes every setting of a mirror', async (t) => {
  const help = settingsHelp()
  for (const { path, fallback, description } of mirrorSettings) {
    t.ok(help.includes(`\n  ${path} (${fallback === undefined ? 'unset' : `default ${fallback}`})\n`), path)
    t.match(description, /^[A-Z].{20,}\.$/, path)
  }
})

// ---------------------------------------------------------------------------------------------
// Faults of single settings
// ---------------------------------------------------------------------------------------------

t.test('each setting of a mirror refuses what it cannot mean', async (t) => {
  const long = 'x'.repeat(1025)
  const refused: Record<string, unknown[]> = {
    name: ['', 'Docker.io', 'registry:5000', '/a', 'a/', 'a//b', 'a b', 'a'.repeat(101), null, ['a'], {}],
    url: [
      'ftp://a',
      'a.example',
      'https://',
      'https://a?q',
      'https://a#f',
      'https://a/v2/',
      'http://127.1',
      null,
    ],
    namespaces: ['http://a', 'a/b', 'a:0', 'a:65536', '[::1', 'a b', null, 5, {}],
    username: ['', 'a:b', 'a\nb', 5, null, long, ['a']],
    password: ['', 'a\nb', 5, null, long, ['a'], {}],
    passwordFile: ['', 5, null],
    passwordVariable: ['', 'A B', '1A', 'A-B', null, ['A']],
    dockerConfig: ['', 5, null],
    allow: ['*', 'A', 'a/**/b', 5, null],
    deny: ['*', 'A', 'a/**/b', 5, null],
    freshness: ['31d', '-1s', '5', 'never', null],
    budget: ['1KB', '10', 'all', null],
    bareNames: ['yes', 1, null, [true]],
    onUpstreamDeleted: ['delete', true, null],
    realms: ['https://a', '*.a.b', 'a/b', null, 5],
    redirects: ['*', '*.', '*a.b', 'a.*', '*.10.0.0.1', 'https://a', null, 5],
    addresses: ['10.0.0.0/33', 'registry.corp', null, 5],
    ca: ['', 5, null],
    public: ['yes', 0, null],
    connectTimeout: ['99ms', '61s', null],
    idleTimeout: ['999ms', '61m', null],
    sync: ['daily', [], null, 5],
  }
  t.strictSame(
    Object.keys(refused),
    mirrorSettings.map(({ path }) => path),
  )
  for (const [name, values] of Object.entries(refused)) {
    for (const value of values) {
      const beside =
        name === 'username' ? { passwordFile: example } : /^password/.test(name) ? { username: 'a' } : {}
      const faults = faultsOfOne(t, { ...beside, [name]: value })
      const own = faults.filter((fault) => fault.startsWith(`mirrors[0].${name} in boathouse.yaml `))
      t.equal(own.length, 1, `${name}: ${JSON.stringify(value)?.slice(0, 40)} gives ${faults.join(' ')}`)
      t.match(own[0], /: .*(?:write|name) .*\.$/, 'which says what to write')
    }
  }
})

t.test('what is wrong within a list or a section is told with its place', async (t) => {
  const image = { repository: 'library/nginx', tags: ['latest'] }
  const cases: [Written, string][] = [
    [
      { url: ['https://a.b', 'a.b'] },
      'mirrors[0].url[1] in boathouse.yaml is "a.b": write an address such as https://registry.example.com, without a user, a query or /v2.',
    ],
    [{ url: [] }, 'mirrors[0].url in boathouse.yaml is a list of 0: write at least one address.'],
    [
      { redirects: ['a.b', 'a b'] },
      'mirrors[0].redirects[1] in boathouse.yaml is "a b": write hosts such as cdn.example.com, or *.example.com for all names below it.',
    ],
    [
      { sync: { images: [] } },
      'mirrors[0].sync.images in boathouse.yaml is a list of 0: write a list of images, each with repository and tags.',
    ],
    [
      { sync: {} },
      'mirrors[0].sync.images in boathouse.yaml is missing: write a list of images, each with repository and tags.',
    ],
    [
      { sync: { images: [image, { ...image, repository: 'A' }] } },
      'mirrors[0].sync.images[1].repository in boathouse.yaml is "A": write a repository of the upstream, such as library/nginx.',
    ],
    [
      { sync: { images: [{ repository: 'a' }] } },
      'mirrors[0].sync.images[0].tags in boathouse.yaml is missing: write tags such as 1.27, or patterns such as 1.*.',
    ],
    [
      { sync: { images: [{ ...image, tags: [] }] } },
      'mirrors[0].sync.images[0].tags in boathouse.yaml is a list of 0: write at least one tag, or * for all.',
    ],
    [
      { sync: { images: [{ ...image, tags: ['a', 'b:c'] }] } },
      'mirrors[0].sync.images[0].tags[1] in boathouse.yaml is "b:c": write tags such as 1.27, or patterns such as 1.*.',
    ],
    [
      { sync: { images: [{ ...image, platforms: ['linux'] }] } },
      'mirrors[0].sync.images[0].platforms[0] in boathouse.yaml is "linux": write platforms such as linux/amd64 or linux/arm/v7.',
    ],
    [
      { sync: { images: [{ ...image, tag: 'a' }] } },
      'mirrors[0].sync.images[0].tag in boathouse.yaml, line 1, is not a setting: did you mean mirrors[0].sync.images[0].tags?',
    ],
  ]
  for (const [written, fault] of cases) t.strictSame(faultsOfOne(t, written), [fault])
  for (const schedule of ['', '@daily', '* * *', '61 * * * *', '0 0 30 2 *', '0 0 0 1 1 * 2030', 5, null]) {
    const [fault = '', ...more] = faultsOfOne(t, { sync: { schedule, images: [image] } })
    t.ok(fault.startsWith('mirrors[0].sync.schedule in boathouse.yaml is '), fault)
    t.match(
      fault,
      /: write a cron expression of 5 or 6 fields that comes true some day, such as 0 3 \* \* \*\.$/,
    )
    t.strictSame(more, [])
  }
})

t.test('what is no list of mirrors', async (t) => {
  t.strictSame(faultsOf(t, `mirrors: {name: docker.io, password: ${canary}}`), [
    'mirrors in boathouse.yaml is a section: write a list of mirrors, or one as JSON in the variable.',
  ])
  t.strictSame(faultsOf(t, `mirrors: ["https://a:${canary}@b"]`), [
    'mirrors[0] in boathouse.yaml is a single value: write a name and the settings of a mirror below it.',
  ])
  t.strictSame(faultsOf(t, 'mirrors: [{}]'), [
    'mirrors[0].name in boathouse.yaml is missing: write lower-case path components such as docker.io or corp/cache.',
  ])
  t.strictSame(faultsOf(t, inYaml(...Array.from({ length: 101 }, (_, n) => ({ name: `m${n}` })))), [
    'mirrors in boathouse.yaml is a list of 101: write 100 mirrors at most.',
  ])
})

t.test('unknown names and names written twice have their lines', async (t) => {
  const yaml =
    'mirrors:\n  - name: ghcr.io\n    usernam: a\n    Namespace: a\n    zzz: a\n    deny: []\n    deny: []\n'
  t.strictSame(faultsOf(t, yaml), [
    'mirrors[0].deny in boathouse.yaml is written twice, on lines 6 and 7: keep one of them.',
    'mirrors[0].usernam in boathouse.yaml, line 3, is not a setting: did you mean mirrors[0].username?',
    'mirrors[0].Namespace in boathouse.yaml, line 4, is not a setting: did you mean mirrors[0].namespaces?',
    'mirrors[0].zzz in boathouse.yaml, line 5, is not a setting: boathouse serve --help lists all settings.',
  ])
})

// ---------------------------------------------------------------------------------------------
// Credentials
// ---------------------------------------------------------------------------------------------

t.test('a password is inline, in a file, in a variable or in the config.json of Docker', async (t) => {
  const folder = scratchDir(t)
  const passwordFile = join(folder, 'password')
  const dockerConfig = join(folder, 'config.json')
  writeFileSync(passwordFile, `${canary}\n`)
  writeFileSync(dockerConfig, '{"auths": {}}')
  const base = { name: 'docker.io', username: 'alice' }
  t.match(mirrorOf(t, { ...base, passwordFile }), { passwordFile, password: undefined })
  const one = mirrorOf(t, { ...base, passwordVariable: 'HUB' }, { HUB: canary })
  t.equal(one.password, canary)
  t.notOk('passwordVariable' in one)
  t.equal(mirrorOf(t, { name: 'docker.io', dockerConfig }).dockerConfig, dockerConfig)
  const json = JSON.stringify([{ ...base, passwordVariable: 'HUB' }])
  t.equal(load(t, '', { BOATHOUSE_MIRRORS: json, HUB: canary }).mirrors[0]?.password, canary)

  const relative = resolve('somewhere-else')
  t.match(faultsOfOne(t, { username: 'a', passwordFile: 'somewhere-else' }), [/which does not exist/])
  t.ok(relative.startsWith('/'))

  t.strictSame(faultsOfOne(t, { ...login, passwordFile, passwordVariable: 'HUB' }, { HUB: 'x' }), [
    'mirrors[0].passwordFile in boathouse.yaml is set beside password: keep one of them.',
    'mirrors[0].passwordVariable in boathouse.yaml is set beside password: keep one of them.',
  ])
  t.strictSame(faultsOfOne(t, { username: canary }), [
    'mirrors[0].username in boathouse.yaml is set without a password: write passwordFile, passwordVariable or password below it.',
  ])
  for (const way of [{ password: canary }, { passwordFile }, { passwordVariable: 'HUB' }]) {
    const [name] = Object.keys(way)
    t.strictSame(faultsOfOne(t, way, { HUB: canary }), [
      `mirrors[0].${name} in boathouse.yaml is set, but username is not: write both, or neither.`,
    ])
    t.strictSame(faultsOfOne(t, { ...way, dockerConfig }, { HUB: canary }), [
      `mirrors[0].dockerConfig in boathouse.yaml is set beside ${name}, which it replaces: keep one of them.`,
    ])
  }
  t.strictSame(faultsOfOne(t, { username: 'a', dockerConfig }), [
    'mirrors[0].dockerConfig in boathouse.yaml is set beside username, which it replaces: keep one of them.',
  ])
})

t.test('the variable of a password must hold one', async (t) => {
  const written = { username: 'alice', passwordVariable: 'HUB' }
  const unset =
    'mirrors[0].passwordVariable in boathouse.yaml names a variable that is unset or empty: put the password into the variable.'
  t.strictSame(faultsOfOne(t, written), [unset])
  t.strictSame(faultsOfOne(t, written, { HUB: '' }), [unset])
  t.strictSame(faultsOfOne(t, { ...written, passwordVariable: canary.replace('-', '_') }), [unset])
  t.strictSame(faultsOfOne(t, { ...written, passwordVariable: canary }), [
    'mirrors[0].passwordVariable in boathouse.yaml cannot be used: write the name of an environment variable.',
  ])
  t.strictSame(faultsOfOne(t, written, { HUB: `${canary}\n` }), [
    'mirrors[0].passwordVariable in boathouse.yaml names a variable whose value is no password: put up to 1024 bytes on one line into it.',
  ])
})

t.test('the files of a mirror hold what they must', async (t) => {
  const folder = scratchDir(t)
  const faults = (setting: string, content?: string) => {
    const file = join(folder, 'file')
    if (content !== undefined) writeFileSync(file, content)
    const beside = setting === 'passwordFile' ? { username: 'a' } : {}
    const path = content === undefined ? join(folder, 'missing') : file
    return faultsOfOne(t, { ...beside, [setting]: path }).map((fault) => fault.replace(/"[^"]*"/, 'FILE'))
  }
  const fault = (setting: string, trouble: string) => {
    const advice = { ca: 'a PEM file with certificates', dockerConfig: 'a config.json of Docker' }[setting]
    const named = advice ?? 'a file with the password on its only line'
    return [`mirrors[0].${setting} in boathouse.yaml is FILE, which ${trouble}: name ${named}.`]
  }
  for (const setting of ['passwordFile', 'dockerConfig', 'ca']) {
    t.strictSame(faults(setting), fault(setting, 'does not exist'))
  }
  t.strictSame(faults('passwordFile', ''), fault('passwordFile', 'is empty'))
  t.strictSame(
    faults('passwordFile', `${canary}\n${canary}\n`),
    fault('passwordFile', 'has more than one line'),
  )
  t.strictSame(faults('dockerConfig', `{"${canary}`), fault('dockerConfig', 'is not JSON'))
  t.strictSame(faults('dockerConfig', '[]'), fault('dockerConfig', 'holds no JSON object'))
  t.strictSame(faults('ca', ''), fault('ca', 'holds no certificate'))
  t.strictSame(faults('ca', selfSigned().key), fault('ca', 'holds no certificate'))
  const broken = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'
  t.strictSame(faults('ca', selfSigned().certificate + broken), fault('ca', 'holds a broken certificate'))
})

t.test('no secret in a refused URL is shown', async (t) => {
  // biome-ignore format: a table
  const urls = [
    `https://alice:${canary}@registry.corp`, `https://${canary}@registry.corp`, `http://a:${canary}/x@registry.corp`,
    `alice:${canary}@registry.corp`, `https://registry.corp?token=${canary}`, `https:/a:${canary}@registry.corp`,
    `https://alice:${canary}@registry.corp/@/v2`, `https://a:x@y\n${canary}@registry.corp`,
  ]
  for (const url of urls) {
    for (const written of [
      { url },
      { url: [url] },
      { namespaces: url },
      { realms: [url] },
      { redirects: [url] },
    ]) {
      const [fault, ...more] = faultsOfOne(t, written)
      t.match(fault, /\*\*\*|…/, 'but the rest is')
      t.strictSame(more, [])
    }
    t.match(faultsOf(t, `publicUrl: ${JSON.stringify(url)}`), [
      /^publicUrl in boathouse\.yaml is .*(?:\*\*\*|…)/,
    ])
    t.match(faultsOf(t, `proxy: {exceptions: [${JSON.stringify(url)}]}`), [
      /^proxy\.exceptions .*(?:\*\*\*|…)/,
    ])
  }
  t.match(faultsOf(t, `proxy: {https: "socks5://u:${canary}@proxy.corp:1080"}`), [
    'proxy.https in boathouse.yaml is "socks5://…@proxy.corp:1080": write the address of a proxy, such as http://proxy.example.com:3128.',
  ])
})

t.test('credentials go in clear text to this machine alone', async (t) => {
  const folder = scratchDir(t)
  const dockerConfig = join(folder, 'config.json')
  writeFileSync(dockerConfig, '{}')
  for (const url of [
    'http://127.0.0.1:5000',
    'http://[::1]:5000',
    'http://localhost',
    'https://registry.corp',
  ]) {
    t.strictSame(faultsOfOne(t, { url, ...login }), [], url)
  }
  for (const url of ['http://registry.corp', 'http://10.0.0.1:5000', 'http://127.0.0.1.example.com']) {
    const fault = (name: string) => [
      `mirrors[0].url in boathouse.yaml holds "${url}", where mirrors[0].${name} would be sent in clear text: ` +
        'write an address with https, or leave out the credentials.',
    ]
    t.strictSame(faultsOfOne(t, { url: ['https://registry.corp', url], ...login }), fault('password'))
    t.strictSame(faultsOfOne(t, { url, dockerConfig }), fault('dockerConfig'))
    t.strictSame(faultsOfOne(t, { url }), [], 'none are sent')
  }
})

t.test('where everybody may read, a mirror that logs in must be public', async (t) => {
  const open = 'listen: 0.0.0.0:5000\nauth: none\n'
  const mirrors = inYaml({ name: 'docker.io' }, { name: 'ghcr.io', ...login })
  const fault =
    'mirrors[1].public in boathouse.yaml is not true, but with auth set to none others would read what the ' +
    'credentials of the mirror open: set it to true, or auth to token.'
  t.strictSame(faultsOf(t, open + mirrors), [fault])
  t.strictSame(faultsOf(t, `${mirrors}listen: :5000\n`, { BOATHOUSE_AUTH: 'none' }), [fault])
  t.strictSame(faultsOf(t, `${open}${mirrors}workers: 0\n`).length, 2, 'beside other faults')
  t.strictSame(faultsOf(t, open + inYaml({ name: 'ghcr.io', ...login, public: true })), [])
  t.strictSame(faultsOf(t, `auth: token\nlisten: :5000\n${mirrors}`), [])
  t.strictSame(faultsOf(t, `auth: none\n${mirrors}`), [], 'on loopback')
  t.strictSame(faultsOf(t, open + mirrors, { BOATHOUSE_MIRRORS: '[]' }), [], 'what counts is judged')
})

// ---------------------------------------------------------------------------------------------
// Between mirrors
// ---------------------------------------------------------------------------------------------

t.test('mirrors do not get into each other’s way', async (t) => {
  t.strictSame(faultsOf(t, inYaml({ name: 'ghcr.io' }, { name: 'ghcr.io' })), [
    'mirrors[1].name in boathouse.yaml is "ghcr.io", as mirrors[0].name is: give each mirror a name of its own.',
  ])
  const url = 'https://a.b'
  for (const [first, second] of [
    ['corp', 'corp/cache'],
    ['corp/cache', 'corp'],
  ]) {
    t.strictSame(faultsOf(t, inYaml({ name: first, url }, { name: second, url })), [
      `mirrors[1].name in boathouse.yaml is "${second}" and mirrors[0].name is "${first}": no name may lie below another.`,
    ])
  }
  t.strictSame(faultsOf(t, inYaml({ name: 'corp', url }, { name: 'corporate', url })), [])
  t.strictSame(faultsOf(t, inYaml({ name: 'corp/a', url }, { name: 'corp/b', url })), [])
  t.strictSame(faultsOf(t, inYaml({ name: 'corp/a' })), [
    'mirrors[0].url in boathouse.yaml is missing: "corp/a" is not the name of a host, so write the address of the upstream.',
  ])
  t.strictSame(faultsOf(t, inYaml({ name: 'docker.io' }, { name: 'hub', namespaces: ['Index.docker.io'] })), [
    'mirrors[1].namespaces in boathouse.yaml holds "index.docker.io", as mirrors[0].namespaces does: leave it to one of them.',
  ])
  t.strictSame(faultsOf(t, inYaml({ name: 'hub', namespaces: ['ghcr.io'] }, { name: 'ghcr.io' })), [
    'mirrors[1].namespaces in boathouse.yaml is unset, which means "ghcr.io", as mirrors[0].namespaces does: leave it to one of them.',
  ])
  t.strictSame(
    faultsOf(t, inYaml({ name: 'ghcr.io', namespaces: [] }, { name: 'hub', namespaces: 'ghcr.io' })),
    [],
  )
  const bareNames = true
  t.strictSame(faultsOf(t, inYaml({ name: 'a', bareNames }, { name: 'b' }, { name: 'c', bareNames })), [
    'mirrors[2].bareNames in boathouse.yaml is true, as mirrors[0].bareNames is: bare names can fall to one mirror only, so write false for the others.',
  ])
})

t.test('all faults of all mirrors are told together', async (t) => {
  const faults = faultsOf(
    t,
    inYaml(
      { name: 'docker.io', freshness: 'never', username: 'a', bareNames: true },
      { name: 'docker.io', oops: 1, ca: '/missing', url: 'http://a.b', ...login, bareNames: true },
    ),
  )
  const places = faults.map((fault) => fault.split(' ')[0])
  t.strictSame(places.sort(), [
    'mirrors[0].freshness',
    'mirrors[0].username',
    'mirrors[1].bareNames',
    'mirrors[1].ca',
    'mirrors[1].name',
    'mirrors[1].oops',
    'mirrors[1].url',
  ])
})

// ---------------------------------------------------------------------------------------------
// The HTTP proxy
// ---------------------------------------------------------------------------------------------

t.test('the proxy is that of the environment where no setting says otherwise', async (t) => {
  const proxy = (env: Record<string, string>, yaml = '') => load(t, yaml, env).proxy
  const http = 'http://one:3128'
  const https = 'http://u:p%40@two:3128'
  for (const name of ['upper', 'lower']) {
    const spell = (text: string) => (name === 'upper' ? text.toUpperCase() : text)
    const env = {
      [spell('http_proxy')]: 'one:3128',
      [spell('https_proxy')]: https,
      [spell('no_proxy')]: '.corp, a:5 10.0.0.0/8',
    }
    t.strictSame(proxy(env), { http, https, exceptions: ['*.corp', 'a:5', '10.0.0.0/8'] }, name)
  }
  t.strictSame(
    proxy({ HTTP_PROXY: http, http_proxy: '', NO_PROXY: '' }),
    { http, exceptions: [] },
    'empty is unset',
  )
  t.equal(proxy({ HTTP_PROXY: 'http://other', http_proxy: http }).http, http, 'lower case first')
  t.equal(proxy({ HTTP_PROXY: 'http://other' }, `proxy: {http: "${http}"}`).http, http, 'the file beats it')
  t.equal(proxy({ HTTP_PROXY: 'http://other', BOATHOUSE_PROXY_HTTP: http }).http, http)
  t.strictSame(proxy({ NO_PROXY: '*' }, 'proxy: {exceptions: []}').exceptions, [])
})

t.test('a wrong proxy of the environment is a fault where upstreams are to be reached', async (t) => {
  const env = { HTTPS_PROXY: `socks5://u:${canary}@proxy:1080`, no_proxy: 'a b%' }
  t.strictSame(load(t, '', env).proxy, { exceptions: [] })
  t.strictSame(load(t, 'mirrors: []', env).proxy, { exceptions: [] })
  const mirrors = inYaml({ name: 'docker.io' })
  t.strictSame(faultsOf(t, mirrors, env), [
    'HTTPS_PROXY is "socks5://…@proxy:1080": write the address of a proxy, such as http://proxy.example.com:3128.',
    'no_proxy is "a b%": write hosts, addresses or networks such as registry.corp, .corp, 10.0.0.0/8, or * for all.',
  ])
  t.strictSame(
    faultsOf(t, `${mirrors}proxy: {https: "http://a", exceptions: []}`, env),
    [],
    'unless replaced',
  )
})
