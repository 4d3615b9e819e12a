import { generateKeyPairSync } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { availableParallelism } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { isLoopback } from '../config/addresses.js'
import { settingsHelp } from '../config/help.js'
import { authMode, ConfigError, loadConfig } from '../config/load.js'
import { readYaml } from '../config/read-yaml.js'
import { type Config, defaults, settings } from '../config/schema.js'
import { selfSigned } from './certificate.js'
import { runServerCommand, scratchDir } from './harness.js'

const example = fileURLToPath(new URL('../../config/boathouse.example.yaml', import.meta.url))

/** Where a test writes its settings; `yaml` becomes a file called boathouse.yaml. */
interface Sources {
  yaml?: string | Buffer
  env?: Record<string, string>
  flags?: { config?: string; listen?: string; data?: string }
}

let configFiles = 0

function load(t: Test, { yaml, env = {}, flags = {} }: Sources): Config {
  if (yaml === undefined) return loadConfig({ flags, env, readYaml })
  const folder = join(scratchDir(t), String(configFiles++))
  mkdirSync(folder)
  writeFileSync(join(folder, 'boathouse.yaml'), yaml)
  return loadConfig({ flags: { config: join(folder, 'boathouse.yaml'), ...flags }, env, readYaml })
}

/** The faults of a configuration, with the file's folder left out; empty when it loads. */
function faultsOf(t: Test, sources: Sources): string[] {
  try {
    load(t, sources)
    return []
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    return error.faults.map((fault) => fault.replaceAll(/[^\s"]*\/boathouse\.yaml/g, 'boathouse.yaml'))
  }
}

/** A value as faults show it. */
function shown(text: string): string {
  const quoted = JSON.stringify(text)
  return quoted.length > 200 ? `${quoted.slice(0, 199)}…` : quoted
}

/** The value at a path such as `uploads.expireAfter`. */
function at(value: unknown, path: string): unknown {
  return path
    .split('.')
    .reduce<unknown>((part, name) => (part as Record<string, unknown> | undefined)?.[name], value)
}

// ---------------------------------------------------------------------------------------------
// Defaults and the example
// ---------------------------------------------------------------------------------------------

t.test('with nothing configured, the defaults hold', async (t) => {
  const config = load(t, {})
  t.strictSame(config, defaults)
  t.strictSame(config, {
    listen: { host: '127.0.0.1', port: 5000 },
    data: resolve('data'),
    trustedProxies: [],
    workers: Math.min(4, availableParallelism()),
    tls: undefined,
    admin: {},
    tokens: { expireAfter: 300_000, refresh: false },
    retention: { schedule: '0 4 * * *', rules: [] },
    tags: { immutable: [], history: 90 * 86_400_000 },
    log: { level: 'info', format: 'auto' },
    uploads: { expireAfter: 24 * 3_600_000, maxPerRepository: 1000, maxPerUser: 500, maxBlobSize: 1024 ** 4 },
    gc: { interval: 900_000, grace: 24 * 3_600_000 },
    verify: { rate: 50 * 1024 ** 2, schedule: '30 3 1 * *' },
    snapshots: { interval: 3_600_000, keep: 24 },
    manifests: { sparse: [] },
    mirrors: [],
    proxy: { exceptions: [] },
    disk: { floor: 256 * 1024 ** 2, reserve: 32 * 1024 ** 2 },
    quotas: [],
    limits: {
      connections: 4096,
      perAddress: 2048,
      bodyMemory: 64 * 1024 ** 2,
      answerMemory: 64 * 1024 ** 2,
    },
    timeouts: { idle: 60_000, shutdown: 30_000 },
  })
  t.notOk('auth' in config, 'the address decides')
})

t.test('a configuration is frozen in all its parts', async (t) => {
  const frozen = (value: unknown): boolean =>
    typeof value !== 'object' ||
    value === null ||
    (Object.isFrozen(value) && Object.values(value).every(frozen))
  t.ok(frozen(defaults))
  t.ok(frozen(load(t, { yaml: 'manifests: {sparse: [a/b]}\nlisten: "[::1]:80"' })))
})

/** The example with its settings that are commented out put in force; prose has a space after its #. */
const exampleText = readFileSync(example, 'utf8')
const exampleInForce = exampleText.replaceAll(/^( *)#(\w+:)/gm, '$1$2')

t.test('the example file, as it is, loads to the defaults', async (t) => {
  t.strictSame(loadConfig({ flags: { config: example }, env: {}, readYaml }), defaults)
})

t.test('the example file has every setting and no other, with its default', async (t) => {
  const paths = (value: unknown, prefix = ''): string[] =>
    typeof value !== 'object' || value === null || Array.isArray(value)
      ? [prefix]
      : Object.entries(value).flatMap(([name, part]) =>
          paths(part, prefix === '' ? name : `${prefix}.${name}`),
        )
  const all: unknown = parse(exampleInForce)
  t.strictSame(
    paths(all),
    settings.map(({ path }) => path),
    'in the order of the schema',
  )

  const written: unknown = parse(exampleText)
  for (const { path, fallback } of settings) {
    const value = at(written, path)
    const shown = typeof value === 'object' ? JSON.stringify(value) : value
    t.equal(
      value === undefined ? undefined : String(shown),
      fallback,
      `${path} has its default, or is commented out`,
    )
  }
  const unset = settings.filter(({ fallback }) => fallback === undefined).map(({ path }) => path)
  t.strictSame(unset, [
    'auth',
    'publicUrl',
    'tls.certificate',
    'tls.key',
    'admin.passwordFile',
    'tokens.service',
    'tokens.keyFile',
    'tags.undo',
    'gc.untagged',
    'proxy.http',
    'proxy.https',
  ])
})

t.test('the example file describes every setting in the words of the help', async (t) => {
  const lines = exampleText.split('\n')
  for (const { path, description } of settings) {
    const [first = '', second] = path.split('.')
    const indent = second === undefined ? '' : '  '
    const start = second === undefined ? 0 : lines.indexOf(`${first}:`)
    const name = second ?? first
    const index = lines.findIndex(
      (line, at) =>
        at >= start && (line.startsWith(`${indent}${name}:`) || line.startsWith(`${indent}#${name}:`)),
    )
    const comment: string[] = []
    for (let above = index - 1; lines[above]?.startsWith(`${indent}# `); above--) {
      comment.unshift((lines[above] ?? '').slice(indent.length + 2))
    }
    t.equal(comment.join(' '), description, path)
  }
})

t.test('the help names every setting, its variable and its default', async (t) => {
  const help = settingsHelp()
  for (const { path, variable, fallback } of settings) {
    t.ok(
      help.includes(`  ${path} (${variable}, ${fallback === undefined ? 'unset' : `default ${fallback}`})\n`),
      path,
    )
  }
  t.ok(
    help.split('\n').every((line) => line.length <= 80),
    'and fits a terminal',
  )
})

// ---------------------------------------------------------------------------------------------
// Sources
// ---------------------------------------------------------------------------------------------

/** Each setting in a value that is not its default, as text, and what it must resolve to. */
const others: Record<string, { text: string; value: unknown }> = {
  listen: { text: '127.0.0.2:6000', value: { host: '127.0.0.2', port: 6000 } },
  data: { text: 'elsewhere', value: resolve('elsewhere') },
  auth: { text: 'token', value: 'token' },
  publicUrl: { text: 'https://Registry.example.com:8443/', value: 'https://registry.example.com:8443' },
  trustedProxies: { text: '10.0.0.0/8,::1', value: ['10.0.0.0/8', '::1'] },
  workers: { text: '7', value: 7 },
  'tokens.expireAfter': { text: '1h', value: 3_600_000 },
  'tokens.service': { text: 'registry.example.com:443', value: 'registry.example.com:443' },
  'tokens.refresh': { text: 'true', value: true },
  'retention.schedule': { text: '12h', value: 43_200_000 },
  'retention.rules': {
    text: '[{"repositories":["a"],"keep":[{"newest":3}]}]',
    value: [{ repositories: ['a'], keep: [{ newest: 3 }] }],
  },
  'tags.undo': { text: '36h', value: 36 * 3_600_000 },
  'tags.history': { text: '30d', value: 30 * 86_400_000 },
  'tags.immutable': { text: 'team/**:v*,**:release-*', value: ['team/**:v*', '**:release-*'] },
  'log.level': { text: 'debug', value: 'debug' },
  'log.format': { text: 'json', value: 'json' },
  'uploads.expireAfter': { text: '15m', value: 900_000 },
  'uploads.maxPerRepository': { text: '12', value: 12 },
  'uploads.maxPerUser': { text: '13', value: 13 },
  'gc.interval': { text: '1h', value: 3_600_000 },
  'gc.grace': { text: '2s', value: 2000 },
  'gc.untagged': { text: '7d', value: 7 * 86_400_000 },
  'verify.rate': { text: 'unlimited', value: Number.POSITIVE_INFINITY },
  'verify.schedule': { text: 'never', value: 'never' },
  'snapshots.interval': { text: '10m', value: 600_000 },
  'snapshots.keep': { text: '3', value: 3 },
  'uploads.maxBlobSize': { text: '64MiB', value: 64 * 1024 ** 2 },
  'manifests.sparse': { text: 'team/app,mirror/**', value: ['team/app', 'mirror/**'] },
  'proxy.http': { text: 'http://proxy.example.com:3128/', value: 'http://proxy.example.com:3128' },
  'proxy.https': { text: 'https://u:p@proxy.example.com', value: 'https://u:p@proxy.example.com' },
  'proxy.exceptions': { text: '.corp,10.0.0.0/8', value: ['*.corp', '10.0.0.0/8'] },
  'disk.floor': { text: '2GiB', value: 2 * 1024 ** 3 },
  'disk.reserve': { text: '64MiB', value: 64 * 1024 ** 2 },
  quotas: {
    text: 'team/**=20GiB, ci=1MB',
    value: [
      { pattern: 'team/**', limit: 20 * 1024 ** 3 },
      { pattern: 'ci', limit: 1e6 },
    ],
  },
  'limits.connections': { text: '500', value: 500 },
  'limits.perAddress': { text: '50', value: 50 },
  'limits.bodyMemory': { text: '32MiB', value: 32 * 1024 ** 2 },
  'limits.answerMemory': { text: '1GiB', value: 1024 ** 3 },
  'timeouts.idle': { text: '90s', value: 90_000 },
  'timeouts.shutdown': { text: '500ms', value: 500 },
}
const variables: Record<string, string> = {
  listen: 'BOATHOUSE_LISTEN',
  data: 'BOATHOUSE_DATA',
  auth: 'BOATHOUSE_AUTH',
  publicUrl: 'BOATHOUSE_PUBLIC_URL',
  trustedProxies: 'BOATHOUSE_TRUSTED_PROXIES',
  workers: 'BOATHOUSE_WORKERS',
  'tls.certificate': 'BOATHOUSE_TLS_CERTIFICATE',
  'tls.key': 'BOATHOUSE_TLS_KEY',
  'admin.passwordFile': 'BOATHOUSE_ADMIN_PASSWORD_FILE',
  'tokens.expireAfter': 'BOATHOUSE_TOKENS_EXPIRE_AFTER',
  'tokens.service': 'BOATHOUSE_TOKENS_SERVICE',
  'tokens.keyFile': 'BOATHOUSE_TOKENS_KEY_FILE',
  'tokens.refresh': 'BOATHOUSE_TOKENS_REFRESH',
  'tags.immutable': 'BOATHOUSE_TAGS_IMMUTABLE',
  'retention.schedule': 'BOATHOUSE_RETENTION_SCHEDULE',
  'retention.rules': 'BOATHOUSE_RETENTION_RULES',
  'tags.undo': 'BOATHOUSE_TAGS_UNDO',
  'tags.history': 'BOATHOUSE_TAGS_HISTORY',
  'log.level': 'BOATHOUSE_LOG_LEVEL',
  'log.format': 'BOATHOUSE_LOG_FORMAT',
  'uploads.expireAfter': 'BOATHOUSE_UPLOADS_EXPIRE_AFTER',
  'uploads.maxPerRepository': 'BOATHOUSE_UPLOADS_MAX_PER_REPOSITORY',
  'uploads.maxPerUser': 'BOATHOUSE_UPLOADS_MAX_PER_USER',
  'gc.interval': 'BOATHOUSE_GC_INTERVAL',
  'gc.grace': 'BOATHOUSE_GC_GRACE',
  'gc.untagged': 'BOATHOUSE_GC_UNTAGGED',
  'uploads.maxBlobSize': 'BOATHOUSE_UPLOADS_MAX_BLOB_SIZE',
  'verify.rate': 'BOATHOUSE_VERIFY_RATE',
  'verify.schedule': 'BOATHOUSE_VERIFY_SCHEDULE',
  'snapshots.interval': 'BOATHOUSE_SNAPSHOTS_INTERVAL',
  'snapshots.keep': 'BOATHOUSE_SNAPSHOTS_KEEP',
  'manifests.sparse': 'BOATHOUSE_MANIFESTS_SPARSE',
  mirrors: 'BOATHOUSE_MIRRORS',
  'proxy.http': 'BOATHOUSE_PROXY_HTTP',
  'proxy.https': 'BOATHOUSE_PROXY_HTTPS',
  'proxy.exceptions': 'BOATHOUSE_PROXY_EXCEPTIONS',
  'disk.floor': 'BOATHOUSE_DISK_FLOOR',
  'disk.reserve': 'BOATHOUSE_DISK_RESERVE',
  quotas: 'BOATHOUSE_QUOTAS',
  'limits.connections': 'BOATHOUSE_LIMITS_CONNECTIONS',
  'limits.perAddress': 'BOATHOUSE_LIMITS_PER_ADDRESS',
  'limits.bodyMemory': 'BOATHOUSE_LIMITS_BODY_MEMORY',
  'limits.answerMemory': 'BOATHOUSE_LIMITS_ANSWER_MEMORY',
  'timeouts.idle': 'BOATHOUSE_TIMEOUTS_IDLE',
  'timeouts.shutdown': 'BOATHOUSE_TIMEOUTS_SHUTDOWN',
}

function inYaml(path: string, text: string): string {
  const [first = '', second] = path.split('.')
  return second === undefined ? `${first}: ${text}\n` : `${first}:\n  ${second}: ${text}\n`
}

/** Settings whose files must hold the right thing, and lists of sections: they have tests of their own. */
const files = ['tls.certificate', 'tls.key', 'admin.passwordFile', 'tokens.keyFile', 'mirrors']

t.test('every setting can be written in the file and as a variable', async (t) => {
  t.strictSame(Object.fromEntries(settings.map(({ path, variable }) => [path, variable])), variables)
  for (const { path, variable } of settings.filter((setting) => !files.includes(setting.path))) {
    const other = others[path]
    if (other === undefined) throw new Error(`${path} has no other value in this test`)
    t.strictSame(at(load(t, { yaml: inYaml(path, other.text) }), path), other.value, `${path} in the file`)
    t.strictSame(at(load(t, { env: { [variable]: other.text } }), path), other.value, variable)
  }
})

t.test('variables beat the file, and flags beat both', async (t) => {
  const yaml = 'listen: 127.0.0.1:1\ndata: one\nlog:\n  level: warn\n  format: json\n'
  const env = { BOATHOUSE_LISTEN: '127.0.0.1:2', BOATHOUSE_DATA: 'two', BOATHOUSE_LOG_LEVEL: 'error' }
  t.match(load(t, { yaml, env, flags: { listen: '127.0.0.1:3' } }), {
    listen: { port: 3 },
    data: resolve('two'),
    log: { level: 'error', format: 'json' },
  })
  t.equal(load(t, { yaml, env, flags: { data: 'three' } }).data, resolve('three'))
})

t.test('the file is the one of --config, else of BOATHOUSE_CONFIG, else none', async (t) => {
  const folder = scratchDir(t)
  writeFileSync(join(folder, 'one.yaml'), 'workers: 1')
  writeFileSync(join(folder, 'two.yaml'), 'workers: 2')
  const env = { BOATHOUSE_CONFIG: join(folder, 'one.yaml') }
  t.equal(load(t, { env }).workers, 1)
  t.equal(load(t, { env, flags: { config: join(folder, 'two.yaml') } }).workers, 2)
  t.equal(
    load(t, { env: { BOATHOUSE_CONFIG: relative(process.cwd(), join(folder, 'two.yaml')) } }).workers,
    2,
  )
})

t.test('empty variables count as unset', async (t) => {
  const env = Object.fromEntries([
    ...settings.map(({ variable }) => [variable, '']),
    ['BOATHOUSE_CONFIG', ''],
  ])
  t.strictSame(load(t, { env }), defaults)
  t.equal(load(t, { yaml: 'workers: 3', env }).workers, 3)
})

t.test('a file may be empty, hold comments only, or have sections with nothing in them', async (t) => {
  for (const yaml of [
    '',
    '# nothing yet\n',
    '---\n',
    'null',
    'uploads:\nlog: ~\ntls: {}\n',
    '\uFEFF# with a mark\n',
  ]) {
    t.strictSame(load(t, { yaml }), defaults, JSON.stringify(yaml))
  }
})

// ---------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------

t.test('listen takes an address with a port, or either', async (t) => {
  const good: Record<string, { host: string; port: number }> = {
    '127.0.0.1:5000': { host: '127.0.0.1', port: 5000 },
    '0.0.0.0:80': { host: '0.0.0.0', port: 80 },
    '[::1]:5000': { host: '::1', port: 5000 },
    '[::]:0': { host: '::', port: 0 },
    'localhost:65535': { host: 'localhost', port: 65_535 },
    'registry.example.com:443': { host: 'registry.example.com', port: 443 },
    '5000': { host: '127.0.0.1', port: 5000 },
    ' 127.0.0.1:5000 ': { host: '127.0.0.1', port: 5000 },
  }
  for (const [listen, expected] of Object.entries(good)) {
    t.strictSame(load(t, { flags: { listen }, env: { BOATHOUSE_AUTH: 'none' } }).listen, expected, listen)
  }
  t.strictSame(load(t, { yaml: 'listen: 7000' }).listen, { host: '127.0.0.1', port: 7000 }, 'a YAML number')
  const everywhere = load(t, { yaml: 'listen: :5000\nauth: none' }).listen
  t.equal(everywhere.port, 5000)
  t.ok(['::', '0.0.0.0'].includes(everywhere.host), ':5000 is all addresses')

  // biome-ignore format: a table
  const bad = [
    '', ' ', '127.0.0.1', '127.0.0.1:', '127.0.0.1:65536', '127.0.0.1:-1', '127.0.0.1:5000x', '::1:5000', '[::1]', '::1',
    '[127.0.0.1]:5000', '[:::1]:5000', '256.0.0.1:5000', '127.1:5000', 'http://127.0.0.1:5000', 'a b:5000', '-a:5000', '*:5000',
    'a/b:5000', '65536', '0x50', 'localhost', ':', `${'a.'.repeat(127)}:5000`,
  ]
  for (const listen of bad) {
    t.strictSame(faultsOf(t, { flags: { listen } }), [
      `--listen is ${shown(listen)}: write an address and a port, such as 127.0.0.1:5000, [::1]:5000, or :5000 for ` +
        'all addresses.',
    ])
  }
})

t.test('durations and sizes have a unit and bounds', async (t) => {
  const durations: Record<string, number> = {
    '1000ms': 1000,
    '1s': 1000,
    '15m': 900_000,
    '24h': 86_400_000,
    '7d': 604_800_000,
    '365d': 31_536_000_000,
  }
  for (const [text, value] of Object.entries(durations)) {
    t.equal(load(t, { env: { BOATHOUSE_UPLOADS_EXPIRE_AFTER: text } }).uploads.expireAfter, value, text)
  }
  for (const text of [
    '0s',
    '999ms',
    '366d',
    '8761h',
    '-1h',
    '1.5h',
    '1 h',
    '1H',
    '1h30m',
    'h',
    '30',
    'Infinity',
    '1w',
    '1constructor',
    '9'.repeat(16),
  ]) {
    t.strictSame(faultsOf(t, { env: { BOATHOUSE_UPLOADS_EXPIRE_AFTER: text } }), [
      `BOATHOUSE_UPLOADS_EXPIRE_AFTER is "${text}": write a duration such as 30m or 24h (at least 1s, at most 365d).`,
    ])
  }
  const sizes: Record<string, number> = {
    '1048576B': 1024 ** 2,
    '1MiB': 1024 ** 2,
    '2MB': 2e6,
    '2000KB': 2e6,
    '1024KiB': 1024 ** 2,
    '10GB': 1e10,
    '3GiB': 3 * 1024 ** 3,
    '1TB': 1e12,
    '1024TiB': 1024 ** 5,
  }
  for (const [text, value] of Object.entries(sizes)) {
    t.equal(load(t, { env: { BOATHOUSE_UPLOADS_MAX_BLOB_SIZE: text } }).uploads.maxBlobSize, value, text)
  }
  for (const text of [
    '1MB',
    '1048575B',
    '1025TiB',
    '64',
    '64mib',
    '64M',
    '1PiB',
    '1.5GiB',
    '1 GiB',
    '-1GiB',
  ]) {
    t.strictSame(faultsOf(t, { env: { BOATHOUSE_UPLOADS_MAX_BLOB_SIZE: text } }), [
      `BOATHOUSE_UPLOADS_MAX_BLOB_SIZE is "${text}": write a size such as 64MiB or 10GB (at least 1MiB, at most 1024TiB).`,
    ])
  }
})

t.test('a refused address does not show the password that is in it', (t) => {
  const written = [
    'https://user:SECRET@registry.example.com',
    'https://SECRET@registry.example.com',
    'https://user:SECRET@more@registry.example.com/',
    'https://user:SECRET/with/slashes@registry.example.com',
    'user:SECRET@registry.example.com',
    `https://user:${'SECRET'.repeat(100)}@registry.example.com`,
  ]
  for (const text of written) {
    for (const [name, yaml] of [
      ['publicUrl', `publicUrl: ${text}`],
      ['listen', `listen: ${text}`],
      ['trustedProxies', `trustedProxies: [${text}]`],
    ] as const) {
      const faults = faultsOf(t, { yaml }).join('\n')
      t.match(faults, name)
      t.notMatch(faults, /SECRET/, `${name}: ${text.slice(0, 60)}`)
    }
    const variable = faultsOf(t, { env: { BOATHOUSE_PUBLIC_URL: text } }).join('\n')
    t.match(variable, '…@registry.example.com', 'the rest is shown')
    t.notMatch(variable, /SECRET/)
  }
  t.match(
    faultsOf(t, { env: { BOATHOUSE_TLS_KEY: '/etc/no@where/key.pem' } }).join(''),
    '/etc/no@where/key.pem',
  )
  t.end()
})

t.test('each setting refuses what lies outside its bounds', async (t) => {
  const refused: Record<string, string[]> = {
    data: ['{}', '[a]', '5', 'true', '""', '"a\\0b"', '~'],
    auth: ['basic', 'None', 'no', 'false', '[none]', '~'],
    publicUrl: [
      'registry.example.com',
      'ftp://a.b',
      'https://a.b/path',
      'https://u@a.b',
      'https://:p@a.b',
      'https://a.b?q',
      '5',
      '[]',
      '~',
    ],
    trustedProxies: [
      '10.0.0.0/33',
      '10.0.0',
      '::1/129',
      'proxy.example.com',
      '10.0.0.1/',
      '10.0.0.0/8/8',
      '[1]',
      '5',
      '~',
    ],
    workers: ['0', '65', '-1', '1.5', 'many', 'true', '.inf', '[1]', '~'],
    'admin.passwordFile': ['""', '[a]', '5', '~'],
    'tokens.expireAfter': ['59s', '61m', '5', 'never', '~'],
    'tokens.service': ['""', '"a b"', 'a/b', "'\"'", '[a]', '~'],
    'tokens.keyFile': ['""', '[a]', '5', '~'],
    'tokens.refresh': ['yes', '1', '"True"', '[true]', '~'],
    'tags.immutable': [
      'v1',
      '"*:v1"',
      'team/**',
      '"team/**:"',
      '":v1"',
      'team/**:a b',
      'Team:v1',
      '[5]',
      '{a: b}',
      '~',
    ],
    'retention.schedule': ['daily', '0 4 * *', '25d', '~'],
    'retention.rules': ['5', '{a: b}', '~'],
    'tags.undo': ['1', '366d', 'never', '~'],
    'tags.history': ['59m', '3651d', 'never', '~'],
    'log.level': ['loud', 'INFO', '1', 'true', '~'],
    'log.format': ['xml', 'false', '~'],
    'uploads.expireAfter': ['tomorrow', '24', '{h: 24}', '~'],
    'gc.interval': ['9ms', '25d', 'never', '15', '~'],
    'gc.grace': ['9ms', '366d', '24', '~'],
    'gc.untagged': ['9ms', '3651d', 'never', '~'],
    'verify.rate': ['0B', '50', 'fast', '~'],
    'verify.schedule': ['daily', 'Never', 'off', '61 3 * * *', '0 3 * *', '0 0 30 2 *', '~'],
    'snapshots.interval': ['99ms', '25d', 'never', '~'],
    'snapshots.keep': ['-1', '1001', 'all', '~'],
    'uploads.maxPerRepository': ['0', '1000001', '1.5', 'all', '~'],
    'uploads.maxPerUser': ['0', '1000001', '1.5', 'all', '~'],
    'uploads.maxBlobSize': ['1', 'huge', '~'],
    'manifests.sparse': ['{a: b}', '[1]', '[[a]]', 'true', '5', '[""]', 'team/App', '~'],
    'proxy.http': [
      'ftp://proxy',
      'http://',
      '"a b"',
      'http://proxy/path',
      'http://proxy?q',
      '70000',
      '[a]',
      '~',
    ],
    'proxy.https': ['socks5://proxy:1080', 'proxy:port', '~'],
    'proxy.exceptions': ['http://a.b', '10.0.0.0/33', '"a:0"', '[5]', '["a,b"]', '{a: b}', '~'],
    'disk.floor': ['1', '-1B', 'none', '~'],
    'disk.reserve': ['1', '-1B', 'none', '~'],
    quotas: ['team', 'team/**=20', '"*=1GiB"', 'a=1GiB=2', '[a=1MiB, a=2MiB]', '[{ a: 1MiB }]'],
    'limits.connections': ['9', '1000001', 'all', '~'],
    'limits.perAddress': ['0', '1000001', 'all', '~'],
    'limits.bodyMemory': ['15MiB', 'none', '~'],
    'limits.answerMemory': ['15MiB', 'none', '~'],
    'timeouts.idle': ['0s', '999ms', '61m', 'never', '~'],
    'timeouts.shutdown': ['0s', '99ms', '61m', 'never', '~'],
  }
  for (const [path, texts] of Object.entries(refused)) {
    for (const text of texts) {
      const [fault = '', ...more] = faultsOf(t, { yaml: inYaml(path, text) })
      t.ok(fault.startsWith(`${path} in boathouse.yaml is `), `${path}: ${text} gives: ${fault}`)
      t.match(fault, /: .*(?:write|name) .*\.$/, 'which says what to write')
      t.strictSame(more, [], 'and nothing else')
    }
  }
  t.equal(load(t, { env: { BOATHOUSE_WORKERS: '64' } }).workers, 64)
  t.equal(
    load(t, { env: { BOATHOUSE_UPLOADS_MAX_PER_REPOSITORY: '1000000' } }).uploads.maxPerRepository,
    1_000_000,
  )
})

t.test('patterns are a list in the file and have commas between them in a variable', async (t) => {
  const yaml = 'manifests:\n  sparse:\n    - team/*\n    - "**"\n'
  t.strictSame(load(t, { yaml }).manifests.sparse, ['team/*', '**'])
  const env = { BOATHOUSE_MANIFESTS_SPARSE: ' team/* , mirror/** ,' }
  t.strictSame(
    load(t, { yaml, env }).manifests.sparse,
    ['team/*', 'mirror/**'],
    'the variable replaces the list',
  )
  t.strictSame(faultsOf(t, { env: { BOATHOUSE_MANIFESTS_SPARSE: '*' } }), [
    'BOATHOUSE_MANIFESTS_SPARSE is "*": write ** to mean all repositories, or team/* to mean those directly below team.',
  ])
  t.equal(
    faultsOf(t, { yaml: 'manifests: {sparse: [A, b, C]}' }).length,
    2,
    'each wrong pattern has its sentence',
  )
  t.match(faultsOf(t, { yaml: 'manifests:\n  sparse:\n    - **\n' }), [
    /^manifests\.sparse in boathouse\.yaml holds .* put quotes round a value that begins with \*\.$/,
  ])
})

// ---------------------------------------------------------------------------------------------
// Faults
// ---------------------------------------------------------------------------------------------

t.test('all faults of all sources are told together, one sentence each', async (t) => {
  const yaml = [
    'uploads:',
    '  expireAfter: tomorrow',
    '  maxPerRepository: 0',
    'workers: 1000',
    'nonsense: 1',
    'tls:',
    '  key: missing.pem',
  ].join('\n')
  const faults = faultsOf(t, {
    yaml,
    env: { BOATHOUSE_WORKERS: 'many', BOATHOUSE_NONSENSE: '1' },
    flags: { listen: 'here' },
  })
  t.strictSame([...faults].sort(), [
    '--listen is "here": write an address and a port, such as 127.0.0.1:5000, [::1]:5000, or :5000 for all addresses.',
    'BOATHOUSE_NONSENSE in the environment is not a setting: boathouse serve --help lists all settings.',
    'BOATHOUSE_WORKERS is "many": write auto or a number from 1 to 64.',
    'nonsense in boathouse.yaml, line 5, is not a setting: boathouse serve --help lists all settings.',
    'tls.key in boathouse.yaml is "missing.pem", which does not exist: name a PEM file with the private key, without a passphrase.',
    'tls.key in boathouse.yaml is set, but tls.certificate is not: set both for HTTPS, or neither.',
    'uploads.expireAfter in boathouse.yaml is "tomorrow": write a duration such as 30m or 24h (at least 1s, at most 365d).',
    'uploads.maxPerRepository in boathouse.yaml is 0: write a number from 1 to 1000000.',
    'workers in boathouse.yaml is 1000: write auto or a number from 1 to 64.',
  ])
})

t.test('a fault in the rules of retention names its part alone', async (t) => {
  const yaml = [
    'retention:',
    '  rules:',
    '    - repositories: ["team/**"]',
    '      keep:',
    '        - newest: ten',
    '        - tags: ["main-*"]',
    '          newst: 5',
    '    - repositories: [Team]',
    '      keeps: []',
    '    - all',
  ].join('\n')
  const keepHint =
    'write what to keep: a list of newest, tags, versions, pushedWithin and pulledWithin, each entry with at least one.'
  t.strictSame(faultsOf(t, { yaml }), [
    'retention.rules[0].keep[0].newest in boathouse.yaml is "ten": write a number from 1 to 100000.',
    'retention.rules[0].keep[1].newst in boathouse.yaml, line 7, is not a setting: did you mean retention.rules[0].keep[1].newest?',
    'retention.rules[1].repositories in boathouse.yaml is a list of 1: "Team" is not a repository pattern: write repository patterns such as team/app, team/*, team/** or ** (all repositories).',
    `retention.rules[1].keep in boathouse.yaml is missing: ${keepHint}`,
    'retention.rules[1].keeps in boathouse.yaml, line 9, is not a setting: did you mean retention.rules[1].keep?',
    'retention.rules[2] in boathouse.yaml is a single value: write a list of rules, each with repositories and keep, or one as JSON in the variable.',
  ])
  const rules = JSON.stringify([
    { repositories: 'a', keep: [{}] },
    { repositories: 'b', keep: [] },
  ])
  t.strictSame(faultsOf(t, { env: { BOATHOUSE_RETENTION_RULES: rules } }), [
    `retention.rules[0].keep[0] in BOATHOUSE_RETENTION_RULES is a section: ${keepHint}`,
    `retention.rules[1].keep in BOATHOUSE_RETENTION_RULES is a list of 0: ${keepHint}`,
  ])
})

t.test('a fault in a value that a later source replaces is told nevertheless', async (t) => {
  const faults = faultsOf(t, { yaml: 'workers: many', env: { BOATHOUSE_WORKERS: '2' } })
  t.strictSame(faults, ['workers in boathouse.yaml is "many": write auto or a number from 1 to 64.'])
})

t.test('the message of the error holds every fault on a line of its own', async (t) => {
  const env = { BOATHOUSE_WORKERS: 'many', BOATHOUSE_LOG_LEVEL: 'lo\nud' }
  t.throws(() => loadConfig({ flags: {}, env, readYaml }), {
    name: 'ConfigError',
    message: [
      'BOATHOUSE_WORKERS is "many": write auto or a number from 1 to 64.',
      'BOATHOUSE_LOG_LEVEL is "lo\\nud": write fatal, error, warn, info, debug, trace or silent.',
    ].join('\n'),
  })
})

t.test('unknown settings have their line, and a hint when a near one exists', async (t) => {
  const hints: Record<string, string> = {
    'upload: {expireAfter: 1h}': 'upload in boathouse.yaml, line 1, is not a setting: did you mean uploads?',
    'uploads:\n  expire_after: 1h':
      'uploads.expire_after in boathouse.yaml, line 2, is not a setting: did you mean uploads.expireAfter?',
    'uploads:\n  maxBlobsize: 1GB':
      'uploads.maxBlobsize in boathouse.yaml, line 2, is not a setting: did you mean uploads.maxBlobSize?',
    'Listen: 5000': 'Listen in boathouse.yaml, line 1, is not a setting: did you mean listen?',
    '\n\nlevel: info': 'level in boathouse.yaml, line 3, is not a setting: did you mean log.level?',
    'log.level: info':
      'log.level in boathouse.yaml, line 1, is not a setting: write log: on a line, and level: on the line below it, indented.',
    'storage: x':
      'storage in boathouse.yaml, line 1, is not a setting: boathouse serve --help lists all settings.',
    '__proto__: x':
      '__proto__ in boathouse.yaml, line 1, is not a setting: boathouse serve --help lists all settings.',
    'constructor: x':
      'constructor in boathouse.yaml, line 1, is not a setting: boathouse serve --help lists all settings.',
    '"a\\nb": x':
      '"a\\nb" in boathouse.yaml, line 1, is not a setting: boathouse serve --help lists all settings.',
  }
  for (const [yaml, fault] of Object.entries(hints)) t.strictSame(faultsOf(t, { yaml }), [fault])
  t.equal(faultsOf(t, { yaml: '? [a, b]\n: x' }).length, 1, 'a key that is a list')
  t.equal(faultsOf(t, { yaml: '<<: {workers: 1}' }).length, 1, 'a merge key')
})

t.test('unknown BOATHOUSE_ variables are faults, with a hint when a near one exists', async (t) => {
  const env = {
    BOATHOUSE_LISTN: 'x',
    BOATHOUSE_LOGLEVEL: 'info',
    BOATHOUSE_CONFG: 'x',
    BOATHOUSE_PORT: '5000',
    BOATHOUSE_: 'x',
    boathouse_x: 'x',
    BOATHOUSES: 'x',
  }
  t.strictSame(faultsOf(t, { env }), [
    'BOATHOUSE_LISTN in the environment is not a setting: did you mean BOATHOUSE_LISTEN?',
    'BOATHOUSE_LOGLEVEL in the environment is not a setting: did you mean BOATHOUSE_LOG_LEVEL?',
    'BOATHOUSE_CONFG in the environment is not a setting: did you mean BOATHOUSE_CONFIG?',
    'BOATHOUSE_PORT in the environment is not a setting: boathouse serve --help lists all settings.',
    'BOATHOUSE_ in the environment is not a setting: boathouse serve --help lists all settings.',
  ])
})

t.test(
  'the variables that Kubernetes makes for Services called boathouse and boathouse-… are not settings',
  async (t) => {
    const env: Record<string, string> = {}
    for (const service of ['BOATHOUSE', 'BOATHOUSE_REGISTRY']) {
      env[`${service}_SERVICE_HOST`] = '10.0.0.11'
      env[`${service}_SERVICE_PORT`] = '5000'
      env[`${service}_SERVICE_PORT_HTTP`] = '5000'
      env[`${service}_PORT`] = 'tcp://10.0.0.11:5000'
      env[`${service}_PORT_5000_TCP`] = 'tcp://10.0.0.11:5000'
      env[`${service}_PORT_5000_TCP_PROTO`] = 'tcp'
      env[`${service}_PORT_5000_TCP_PORT`] = '5000'
      env[`${service}_PORT_5000_TCP_ADDR`] = '10.0.0.11'
    }
    t.strictSame(load(t, { env }), defaults)
  },
)

t.test('a setting written twice is a fault with both lines', async (t) => {
  t.strictSame(
    faultsOf(t, { yaml: 'workers: 1\nlog:\n  level: info\n  format: json\n  level: warn\nworkers: 1\n' }),
    [
      'log.level in boathouse.yaml is written twice, on lines 3 and 5: keep one of them.',
      'workers in boathouse.yaml is written twice, on lines 1 and 6: keep one of them.',
    ],
  )
  t.strictSame(faultsOf(t, { yaml: 'log: {level: warn}\nlog: {format: json}' }), [
    'log in boathouse.yaml is written twice, on lines 1 and 2: keep one of them.',
  ])
})

t.test('a section that is not one, and a file without settings', async (t) => {
  for (const value of ['1h', '[]', '[1h]', '5', 'false']) {
    t.strictSame(faultsOf(t, { yaml: `uploads: ${value}` }), [
      'uploads in boathouse.yaml is not a section: write expireAfter, maxPerRepository, maxPerUser, maxBlobSize on lines below it.',
    ])
  }
  for (const yaml of ['- workers: 1', 'workers', '5']) {
    t.strictSame(faultsOf(t, { yaml }), [
      'boathouse.yaml holds no settings: write each as a name, a colon and a value.',
    ])
  }
})

t.test('what is no YAML is told with its line', async (t) => {
  const broken: Record<string, RegExp> = {
    'workers: 1\nlog:\n\tlevel: info\n': /line 3, column 1: Tabs /,
    'listen: [::1]:5000\n': /line 1, column \d+: /,
    'workers: 1\nlog: {level: info\n': /line \d, column \d+: /,
    'workers: 1\n---\nworkers: 2\n': /line 2, column 1: a second document begins here/,
    'workers: "1\n': /line \d, column \d+: /,
    'workers: !!js/function 1\n': /line 1, column 10: /,
    'workers: 1\n@\n': /line 2, column 1: /,
  }
  for (const [yaml, words] of Object.entries(broken)) {
    const [fault = '', ...more] = faultsOf(t, { yaml, flags: { listen: '0.0.0.0:5000' } })
    t.ok(fault.startsWith('boathouse.yaml is not valid YAML at '), fault)
    t.match(fault, words)
    t.match(fault, /^[^\n]+\.$/, 'one sentence')
    t.strictSame(more, [], 'without guesses at what the file would have said about auth')
  }
  const latin1 = Buffer.from('data: b\xfccher\n', 'latin1')
  t.strictSame(faultsOf(t, { yaml: latin1 }), [
    'boathouse.yaml is not UTF-8 text: write it as YAML in UTF-8.',
  ])
})

t.test('hostile files are refused', async (t) => {
  const letters = [...'bcdefghi']
  const bomb = [
    'a: &a [x, x, x, x, x, x, x, x, x]',
    ...letters.map(
      (letter, index) => `${letter}: &${letter} [${Array(9).fill(`*${'abcdefgh'[index]}`).join(', ')}]`,
    ),
    'manifests: {sparse: *i}',
  ].join('\n')
  const hostile: Record<string, string> = {
    'an alias bomb': bomb,
    'an alias of itself': 'manifests: {sparse: &a [*a]}',
    'a section in itself': 'log: &a {level: *a}',
    'deep nesting': '['.repeat(20_000),
    'deep nesting that is closed': `data: ${'['.repeat(20_000)}${']'.repeat(20_000)}`,
    'many unknown settings': Array.from({ length: 20_000 }, (_, index) => `k${index}: 1`).join('\n'),
    'one setting many times': 'workers: 1\n'.repeat(20_000),
    'a long value': `workers: ${'9'.repeat(500_000)}`,
    'a long name': `${'w'.repeat(900)}: 1`,
  }
  for (const [what, yaml] of Object.entries(hostile)) {
    const faults = faultsOf(t, { yaml })
    t.ok(faults.length >= 1 && faults.length <= 51, `${what} has ${faults.length} faults`)
    t.ok(
      faults.every((fault) => fault.length < 600),
      `${what}: ${faults[0]}`,
    )
  }
  t.match(
    faultsOf(t, { yaml: hostile['many unknown settings'] ?? '' }).at(-1),
    /^There are 19950 more faults/,
  )
  t.match(faultsOf(t, { yaml: '['.repeat(20_000) }), [/: it is nested too deeply\.$/])
})

t.test('a file that cannot be read is told with the place that names it', async (t) => {
  const folder = scratchDir(t)
  const missing = join(folder, 'missing.yaml')
  const large = join(folder, 'large.yaml')
  writeFileSync(large, '#'.repeat(1024 * 1024 + 1))
  const inEnvironment = (file: string) => faultsOf(t, { env: { BOATHOUSE_CONFIG: file } })
  t.strictSame(inEnvironment(missing), [
    `BOATHOUSE_CONFIG is ${shown(missing)}, which does not exist: name a YAML file.`,
  ])
  t.strictSame(faultsOf(t, { flags: { config: missing } }), [
    `--config is ${shown(missing)}, which does not exist: name a YAML file.`,
  ])
  t.strictSame(inEnvironment(folder), [
    `BOATHOUSE_CONFIG is ${shown(folder)}, which is a folder: name a YAML file.`,
  ])
  t.strictSame(inEnvironment(large), [
    `BOATHOUSE_CONFIG is ${shown(large)}, which is larger than 1 MiB: name a YAML file.`,
  ])
  t.strictSame(inEnvironment('/dev/zero'), [
    'BOATHOUSE_CONFIG is "/dev/zero", which is larger than 1 MiB: name a YAML file.',
  ])
  t.strictSame(faultsOf(t, { flags: { config: '' } }), [
    '--config is "", which does not exist: name a YAML file.',
  ])
  writeFileSync(large, '#'.repeat(1024 * 1024))
  t.strictSame(inEnvironment(large), [], '1 MiB is allowed')
})

// ---------------------------------------------------------------------------------------------
// Rules across settings
// ---------------------------------------------------------------------------------------------

t.test('loopback is 127.0.0.0/8, ::1 and localhost', async (t) => {
  for (const host of ['127.0.0.1', '127.255.255.254', '::1', '0:0:0:0:0:0:0:1', 'localhost', 'LocalHost']) {
    t.ok(isLoopback(host), host)
  }
  for (const host of [
    '0.0.0.0',
    '::',
    '128.0.0.1',
    '126.255.255.255',
    '192.168.0.1',
    '10.0.0.1',
    '::2',
    'fe80::1',
    'example.com',
    'localhost.example.com',
    '127.0.0.1.example.com',
    '',
  ]) {
    t.notOk(isLoopback(host), host)
  }
})

t.test(
  'unset, auth is none for an address that this machine alone can reach, and token otherwise',
  async (t) => {
    const mode = (sources: Sources) => authMode(load(t, sources))
    for (const listen of [
      '0.0.0.0:5000',
      '[::]:5000',
      ':5000',
      '192.0.2.1:5000',
      'registry.example.com:5000',
    ]) {
      t.equal(mode({ flags: { listen } }), 'token', listen)
      t.equal(mode({ env: { BOATHOUSE_LISTEN: listen, BOATHOUSE_AUTH: '' } }), 'token', 'empty is not none')
      t.equal(mode({ yaml: 'auth: none', flags: { listen } }), 'none', 'unless none is written')
      t.equal(mode({ yaml: 'auth: none', env: { BOATHOUSE_AUTH: 'token' }, flags: { listen } }), 'token')
    }
    for (const listen of ['127.0.0.1:5000', '127.9.9.9:5000', '[::1]:5000', 'localhost:5000', '5000']) {
      t.equal(mode({ flags: { listen } }), 'none', listen)
      t.equal(mode({ yaml: 'auth: token', flags: { listen } }), 'token', 'unless token is written')
    }
    t.equal(
      mode({ yaml: 'listen: 0.0.0.0:5000', flags: { listen: '127.0.0.1:5000' } }),
      'none',
      'the flag decides',
    )
    for (const yaml of [
      'publicUrl: https://registry.example.com',
      'publicUrl: http://localhost:5000',
      'trustedProxies: 127.0.0.1',
      'trustedProxies: [10.0.0.0/8]',
    ]) {
      t.equal(mode({ yaml }), 'token', `S77: ${yaml}`)
      t.equal(mode({ yaml: `${yaml}\nauth: none` }), 'none', `S77: ${yaml}, but none is written`)
    }
    t.equal(mode({ yaml: 'trustedProxies: []' }), 'none', 'S77: nobody is trusted')
    t.strictSame(
      faultsOf(t, { yaml: 'auth: basic', flags: { listen: '0.0.0.0:5000' } }),
      ['auth in boathouse.yaml is "basic": write token, or none to let everybody in.'],
      'a wrong value of auth is told once',
    )
  },
)

t.test('tokens.keyFile holds an Ed25519 private key', async (t) => {
  const folder = scratchDir(t)
  const file = (name: string, content: string | Buffer) => {
    writeFileSync(join(folder, name), content)
    return join(folder, name)
  }
  const faults = (path: string) =>
    faultsOf(t, { env: { BOATHOUSE_TOKENS_KEY_FILE: path } }).map((fault) => fault.replace(/"[^"]*"/, 'FILE'))
  const pem = { type: 'pkcs8', format: 'pem' } as const
  const { publicKey, privateKey } = generateKeyPairSync('ed25519')
  const good = file('good.pem', privateKey.export(pem))
  t.equal(load(t, { env: { BOATHOUSE_TOKENS_KEY_FILE: good } }).tokens.keyFile, good)
  t.strictSame(
    faults(good).concat(faultsOf(t, { yaml: `tokens: {keyFile: ${relative(process.cwd(), good)}}` })),
    [],
  )

  const advice = 'name a PEM file with an unencrypted Ed25519 private key.'
  const unusable = `BOATHOUSE_TOKENS_KEY_FILE is FILE, which holds no usable private key: ${advice}`
  const locked = { ...pem, cipher: 'aes-256-cbc', passphrase: 'a canary' }
  t.strictSame(faults(file('locked.pem', privateKey.export(locked))), [unusable])
  t.strictSame(faults(file('public.pem', publicKey.export({ type: 'spki', format: 'pem' }))), [unusable])
  t.strictSame(faults(file('empty.pem', '')), [unusable])
  t.strictSame(faults(file('noise.pem', 'a canary')), [unusable])
  t.strictSame(faults(file('ec.pem', selfSigned().key)), [
    `BOATHOUSE_TOKENS_KEY_FILE is FILE, which holds a key of another kind (ec): ${advice}`,
  ])
  t.strictSame(faults(`${good}.missing`), [
    `BOATHOUSE_TOKENS_KEY_FILE is FILE, which does not exist: ${advice}`,
  ])
  t.strictSame(faults(folder), [`BOATHOUSE_TOKENS_KEY_FILE is FILE, which is a folder: ${advice}`])
})

t.test('admin.passwordFile holds a password on its only line', async (t) => {
  const folder = scratchDir(t)
  const path = join(folder, 'password')
  const faults = (content: string | Buffer) => {
    writeFileSync(path, content)
    return faultsOf(t, { env: { BOATHOUSE_ADMIN_PASSWORD_FILE: path } }).map((fault) =>
      fault.replace(/"[^"]*"/, 'FILE'),
    )
  }
  const fault = (trouble: string) => [
    `BOATHOUSE_ADMIN_PASSWORD_FILE is FILE, which ${trouble}: name a file with the password on its only line.`,
  ]
  for (const good of ['secret', 'secret\n', 'secret\r\n', ' ', 'pässwörd', 'x'.repeat(1024)]) {
    t.strictSame(faults(good), [], JSON.stringify(good.slice(0, 20)))
  }
  t.equal(load(t, { env: { BOATHOUSE_ADMIN_PASSWORD_FILE: path } }).admin.passwordFile, path)
  t.strictSame(faults(''), fault('is empty'))
  t.strictSame(faults('\n'), fault('is empty'))
  t.strictSame(faults('one\ntwo\n'), fault('has more than one line'))
  t.strictSame(faults('one\n\n'), fault('has more than one line'))
  t.strictSame(faults('a\0b'), fault('is not UTF-8 text'))
  t.strictSame(faults(Buffer.from('p\xe4ss\n', 'latin1')), fault('is not UTF-8 text'))
  t.strictSame(faults('x'.repeat(1025)), fault('has more than 1024 bytes'))
  t.strictSame(
    faultsOf(t, { yaml: `admin: {passwordFile: ${folder}}` }).map((text) => text.replace(/"[^"]*"/, 'FILE')),
    [
      'admin.passwordFile in boathouse.yaml is FILE, which is a folder: name a file with the password on its only line.',
    ],
  )
})

t.test('TLS has a certificate and the key that belongs to it', async (t) => {
  const folder = scratchDir(t)
  const file = (name: string, content: string) => {
    const path = relative(process.cwd(), join(folder, name))
    writeFileSync(path, content)
    return path
  }
  const own = selfSigned()
  const certificate = file('c.pem', own.certificate)
  const key = file('k.pem', own.key)
  const other = file('o.pem', selfSigned().key)
  const empty = file('e.pem', '')
  const faults = (certificate: string, key: string) =>
    faultsOf(t, { env: { BOATHOUSE_TLS_CERTIFICATE: certificate, BOATHOUSE_TLS_KEY: key } }).map((fault) =>
      fault.replaceAll(/"[^"]*"/g, 'FILE'),
    )

  t.strictSame(load(t, { env: { BOATHOUSE_TLS_CERTIFICATE: certificate, BOATHOUSE_TLS_KEY: key } }).tls, {
    certificate: resolve(certificate),
    key: resolve(key),
  })
  t.strictSame(load(t, { yaml: `tls:\n  certificate: ${certificate}\n  key: ${key}\n` }).tls, {
    certificate: resolve(certificate),
    key: resolve(key),
  })
  t.strictSame(faults(certificate, other), [
    'BOATHOUSE_TLS_KEY is FILE, which does not belong to the certificate in FILE: name the key that it was made with.',
  ])
  t.strictSame(faults(empty, empty), [
    'BOATHOUSE_TLS_CERTIFICATE is FILE, which holds no certificate: name a PEM file with the certificate and its chain.',
    'BOATHOUSE_TLS_KEY is FILE, which holds no usable private key: name a PEM file with the private key, without a passphrase.',
  ])
  t.equal(faults(key, certificate).length, 2, 'one in place of the other')
  t.strictSame(faults(`${certificate}.missing`, folder), [
    'BOATHOUSE_TLS_CERTIFICATE is FILE, which does not exist: name a PEM file with the certificate and its chain.',
    'BOATHOUSE_TLS_KEY is FILE, which is a folder: name a PEM file with the private key, without a passphrase.',
  ])
  t.strictSame(faults(certificate, ''), [
    'BOATHOUSE_TLS_CERTIFICATE is set, but tls.key is not: set both for HTTPS, or neither.',
  ])
  t.strictSame(faults('', key), [
    'BOATHOUSE_TLS_KEY is set, but tls.certificate is not: set both for HTTPS, or neither.',
  ])

  const tls = { BOATHOUSE_TLS_CERTIFICATE: certificate, BOATHOUSE_TLS_KEY: key }
  t.strictSame(
    faultsOf(t, { yaml: 'publicUrl: HTTP://registry.example.com', env: tls }),
    [
      'publicUrl in boathouse.yaml is "HTTP://registry.example.com", but the server speaks HTTPS: write an address ' +
        'with https, or unset tls.',
    ],
    'clients would be sent where nobody listens',
  )
  t.strictSame(faultsOf(t, { yaml: 'publicUrl: https://registry.example.com', env: tls }), [])
  t.strictSame(faultsOf(t, { yaml: 'publicUrl: http://registry.example.com' }), [])
  t.strictSame(
    faultsOf(t, {
      yaml: 'publicUrl: http://registry.example.com',
      env: { ...tls, BOATHOUSE_PUBLIC_URL: 'https://registry.example.com' },
    }),
    [],
    'what counts is judged',
  )
})

// ---------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------

t.test('serve refuses a wrong configuration with exit code 2, before it touches port or data', async (t) => {
  const folder = scratchDir(t)
  const data = join(folder, 'data')
  const config = join(folder, 'boathouse.yaml')
  writeFileSync(config, 'uploads:\n  expireAfter: tomorrow\n')
  // The port is taken, so that a server which opened it would say so.
  const taken = createServer()
  await new Promise<void>((done) => taken.listen(0, '127.0.0.1', done))
  t.teardown(() => taken.close())
  const address = taken.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0

  const run = await runServerCommand(
    ['serve', '--config', config, '--listen', `127.0.0.1:${port}`, '--data', data],
    { BOATHOUSE_WORKERS: 'many', BOATHOUSE_NONSENSE: '1' },
  )
  t.equal(run.code, 2)
  t.equal(run.stdout, '')
  t.strictSame(
    run.stderr
      .trim()
      .split('\n')
      .map((line) => line.replace(config, 'boathouse.yaml').replace(/: node \S+ serve/, ': boathouse serve'))
      .sort(),
    [
      'BOATHOUSE_NONSENSE in the environment is not a setting: boathouse serve --help lists all settings.',
      'BOATHOUSE_WORKERS is "many": write auto or a number from 1 to 64.',
      'uploads.expireAfter in boathouse.yaml is "tomorrow": write a duration such as 30m or 24h (at least 1s, at most 365d).',
    ],
  )
  t.throws(() => readFileSync(data), { code: 'ENOENT' }, 'no data folder was made')
})

t.test('serve --help lists every setting', async (t) => {
  const run = await runServerCommand(['serve', '--help'])
  t.equal(run.code, 0)
  for (const { path, variable } of settings) t.ok(run.stdout.includes(`${path} (${variable}, `), path)
})
