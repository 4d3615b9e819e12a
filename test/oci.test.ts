import { createHash } from 'node:crypto'
import t, { type Test } from 'tap'
import {
  algorithmOf,
  type Digest,
  digestOf,
  digestSoFar,
  encodedOf,
  isAlgorithm,
  isDigest,
  parseDigest,
} from '../src/oci/digest.js'
import { errorTable, RegistryError, UploadRangeError } from '../src/oci/errors.js'
import { isObject, parseJsonObject } from '../src/oci/json.js'
import { largestManifest, type ParsedManifest, parseManifest } from '../src/oci/manifest.js'
import {
  bareMediaType,
  canHaveSubject,
  isNonDistributable,
  isSchema1,
  manifestKindOf,
  mediaTypes,
} from '../src/oci/media-types.js'
import { isRepositoryName, parseReference, parseRepositoryName, parseTag } from '../src/oci/reference.js'
import { matchesTag, parseTagPattern, tagPatternsFor } from '../src/oci/tag-pattern.js'

const hex64 = '0123456789abcdef'.repeat(4)
const hex128 = hex64.repeat(2)

/** The refusal that a call throws; undefined when it returns. Any other error is thrown on. */
function refusalOf(call: () => unknown): RegistryError | undefined {
  try {
    call()
    return undefined
  } catch (error) {
    if (error instanceof RegistryError) return error
    throw error
  }
}

/** Text as a message may show it. */
function shown(text: string): string {
  const quoted = JSON.stringify(text)
  return quoted.length > 60 ? `${quoted.slice(0, 60)}… (${text.length})` : quoted
}

// ---------------------------------------------------------------------------------------------
// Time
// ---------------------------------------------------------------------------------------------

/** The least milliseconds of processor time of several runs: what else the machine does hardly counts in it. */
function leastTime(run: () => void, rounds = 5): number {
  let least = Number.POSITIVE_INFINITY
  for (let round = 0; round < rounds; round++) {
    const before = process.cpuUsage()
    run()
    const { user, system } = process.cpuUsage(before)
    least = Math.min(least, (user + system) / 1000)
  }
  return least
}

/** Asserts that a long input takes no more than its share: about as long as many short ones of the same sum. */
function growsLinearly(t: Test, what: string, make: (size: number) => () => unknown): void {
  const times = 32
  const short = make(4096)
  const long = make(4096 * times)
  const shortTime = leastTime(() => {
    for (let turn = 0; turn < times; turn++) short()
  })
  const bound = shortTime * 8 + 1
  let longTime = Number.POSITIVE_INFINITY
  for (let round = 0; round < 10 && longTime > bound; round++) longTime = leastTime(long, 1)
  const measured = `${longTime.toFixed(1)} ms, in short pieces ${shortTime.toFixed(1)} ms`
  t.ok(longTime <= bound, `${what}: ${measured}`)
}

/** Asserts that hostile text costs no more than a plain one by a factor that no backtracking keeps to. */
function costsLittle(t: Test, what: string, hostile: () => unknown, plain: () => unknown): void {
  const repeated = (call: () => unknown) => () => {
    for (let turn = 0; turn < 200; turn++) call()
  }
  const plainTime = leastTime(repeated(plain), 9)
  const hostileTime = leastTime(repeated(hostile), 9)
  t.ok(
    hostileTime < plainTime * 20 + 1,
    `${what}: ${hostileTime.toFixed(2)} ms, plain text ${plainTime.toFixed(2)} ms`,
  )
}

// ---------------------------------------------------------------------------------------------
// Digests
// ---------------------------------------------------------------------------------------------

const badDigests = [
  '',
  ':',
  'sha256',
  'sha256:',
  hex64,
  `:${hex64}`,
  `sha256:${hex64.slice(1)}`,
  `sha256:${hex64}0`,
  `sha256:${hex128}`,
  `sha512:${hex64}`,
  `sha512:${hex128.slice(1)}`,
  `sha512:${hex128}0`,
  `SHA256:${hex64}`,
  `sha256:${hex64.toUpperCase()}`,
  `sha256:${hex64.slice(1)}g`,
  `sha256:${hex64.slice(1)}G`,
  `sha256: ${hex64.slice(1)}`,
  `sha256:${hex64.slice(1)}\n`,
  `sha256:${hex64}\n`,
  ` sha256:${hex64}`,
  `sha256:${hex64} `,
  `sha256:${hex64.slice(1)}\0`,
  `sha256:../../${hex64.slice(6)}`,
  `sha256:${hex64.slice(4)}/../`,
  `sha256:${hex64.slice(1)}٣`,
  `sha256:${hex64.slice(1)}ａ`,
  `sha256:sha256:${hex64.slice(7)}`,
  `sha256+b64:${hex64}`,
  `sha384:${hex64}${hex64.slice(32)}`,
  `sha1:${hex64.slice(24)}`,
  `md5:${hex64.slice(32)}`,
  `blake3:${hex64}`,
  `constructor:${hex64}`,
  `__proto__:${hex64}`,
  `toString:${hex64}`,
  `sha256:${hex64}`.repeat(2),
]

t.test('digests: sha256 with 64 and sha512 with 128 lower-case digits, and nothing else', async (t) => {
  for (const digest of [`sha256:${hex64}`, `sha512:${hex128}`]) {
    t.equal(isDigest(digest), true, digest)
    t.equal(parseDigest(digest), digest, `${digest} is parsed`)
  }
  for (const text of badDigests) {
    t.equal(isDigest(text), false, shown(text))
    const refusal = refusalOf(() => parseDigest(text))
    t.equal(refusal?.kind, 'DIGEST_INVALID', `${shown(text)} is refused`)
    t.equal(refusal?.status, 400)
  }
})

t.test('digests: the parts, and the digest of bytes', async (t) => {
  const empty = {
    sha256: 'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
    sha512:
      'sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce' +
      '47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e',
  }
  for (const algorithm of ['sha256', 'sha512'] as const) {
    const digest = parseDigest(empty[algorithm])
    t.equal(digestOf(Buffer.alloc(0), algorithm), digest, `${algorithm} of nothing`)
    t.equal(algorithmOf(digest), algorithm)
    t.equal(`${algorithmOf(digest)}:${encodedOf(digest)}`, digest, 'the parts make the whole')
  }
  t.equal(
    digestOf(Buffer.from('abc')),
    'sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
    'sha256 unless told',
  )
  for (const name of ['sha384', 'SHA256', '', 'constructor', '__proto__', 'sha256 ']) {
    t.equal(isAlgorithm(name), false, `${shown(name)} is no algorithm`)
  }
})

t.test('digests: a running hash goes on after it was asked', async (t) => {
  const hash = createHash('sha512')
  let sum = Buffer.alloc(0)
  for (const piece of ['', 'a', 'bc', '']) {
    hash.update(piece)
    sum = Buffer.concat([sum, Buffer.from(piece)])
    t.equal(digestSoFar(hash, 'sha512'), digestOf(sum, 'sha512'), `after ${shown(sum.toString())}`)
  }
})

// ---------------------------------------------------------------------------------------------
// Names, tags, references
// ---------------------------------------------------------------------------------------------

// biome-ignore format: one line each would hide the grammar
const goodNames = [
  'a', '0', 'a0', 'abc/def', 'a/b/c/d/e/f', 'a.b', 'a_b', 'a__b', 'a-b', 'a--b', 'a---------b', 'a.b_c__d-e--f/0.0', 'blobs',
  'manifests/tags/list', 'v2', 'library/ubuntu', 'constructor', 'proto', 'a'.repeat(255), `${'a/'.repeat(127)}a`,
]
// biome-ignore format: as above
const badNames = [
  '', '/', 'a/', '/a', 'a//b', '.', '..', 'a/.', 'a/..', '../a', 'a/../b', '-a', 'a-', '_a', 'a_', '.a', 'a.', 'a..b', 'a._b', 'a___b',
  'a_-b', 'a.-b', 'a-.b', 'a-_b', 'A', 'aB', 'Library/ubuntu', 'a b', ' a', 'a ', 'a\n', 'a\0', 'a%2fb', 'a:b', 'a@b', 'a\\b', 'a*', 'a~b', 'ä', 'ａ',
  'a+b', 'a,b', 'a/b?', 'a/b#c', '__proto__', 'a/-/b', 'a/_/b', 'a'.repeat(256), `${'a/'.repeat(127)}ab`, 'a/'.repeat(128),
]
// biome-ignore format: as above
const goodTags = ['a', '0', '_', 'latest', 'v1.2.3', 'A', 'a-', 'a.', 'a..b', '_-', '__proto__', 'constructor', 'a'.repeat(128), `_${'.'.repeat(127)}`]
// biome-ignore format: as above
const badTags = ['', '.', '-', '.a', '-a', '..', 'a b', 'a/b', 'a:b', 'a+b', 'a@b', 'a\n', '\na', 'a\0', 'ä', 'ａ', '٣', 'a%20', 'a'.repeat(129)]

t.test('names: components of letters and digits with single separators', async (t) => {
  for (const name of goodNames) {
    t.equal(isRepositoryName(name), true, shown(name))
    t.equal(parseRepositoryName(name), name)
  }
  for (const name of badNames) {
    t.equal(isRepositoryName(name), false, shown(name))
    t.equal(refusalOf(() => parseRepositoryName(name))?.kind, 'NAME_INVALID', `${shown(name)} is refused`)
  }
})

t.test('tags: up to 128 characters, the first neither a dot nor a dash', async (t) => {
  for (const tag of goodTags) t.equal(parseTag(tag), tag, shown(tag))
  for (const tag of badTags) t.equal(refusalOf(() => parseTag(tag))?.kind, 'TAG_INVALID', shown(tag))
})

t.test('references: text with a colon is a digest, and never a tag', async (t) => {
  t.strictSame(parseReference('latest'), { kind: 'tag', tag: 'latest' })
  t.strictSame(parseReference(`sha256:${hex64}`), { kind: 'digest', digest: `sha256:${hex64}` })
  t.strictSame(parseReference(hex64), { kind: 'tag', tag: hex64 }, 'digits alone are a tag')
  for (const text of ['sha256:baddigest', 'a:b', ':', 'latest:', `sha256:${hex64}0`]) {
    t.equal(refusalOf(() => parseReference(text))?.kind, 'DIGEST_INVALID', shown(text))
  }
  t.equal(refusalOf(() => parseReference('-a'))?.kind, 'TAG_INVALID')
  t.equal(refusalOf(() => parseReference(''))?.kind, 'TAG_INVALID')
})

t.test('names, tags and digests: hostile text takes no longer than plain text', async (t) => {
  const name = 'a'.repeat(255)
  const hostileNames = {
    'letters and a bad end': `${'a'.repeat(254)}!`,
    'dashes and a bad end': `a${'-'.repeat(253)}!`,
    'dashes at the end': `a${'-'.repeat(254)}`,
    'separators by turns': `${'a-'.repeat(127)}!`,
    'underscores by two': `${'a__'.repeat(84)}_`,
    'slashes by turns': `${'a/'.repeat(127)}!`,
    'dots by turns': `${'a.'.repeat(127)}.`,
  }
  for (const [what, text] of Object.entries(hostileNames)) {
    t.equal(isRepositoryName(text), false, what)
    costsLittle(
      t,
      what,
      () => isRepositoryName(text),
      () => isRepositoryName(name),
    )
  }
  const long = 'a-'.repeat(500_000)
  const length = () => /!/.test(long)
  costsLittle(t, 'a megabyte as a name', () => isRepositoryName(long), length)
  costsLittle(t, 'a megabyte as a tag', () => refusalOf(() => parseTag(long)), length)
  costsLittle(t, 'a megabyte as a digest', () => isDigest(`sha256:${long}`), length)
})

t.test('patterns of tags: stars stand for any text', async (t) => {
  const sets: Record<string, { has: string[]; lacks: string[] }> = {
    v1: { has: ['v1'], lacks: ['v', 'v10', 'av1', 'V1'] },
    '*': { has: ['a', 'v1', 'x'.repeat(128)], lacks: [] },
    'v*': { has: ['v', 'v1', 'v1.2'], lacks: ['av1', 'V1', ''] },
    '*-rc': { has: ['-rc', '1-rc'], lacks: ['1-rc1', 'rc'] },
    'v*-rc*': { has: ['v-rc', 'v1-rc', 'v1-rc2'], lacks: ['v1', 'v1-r', '1-rc', 'v-r-c'] },
    'a*a': { has: ['aa', 'aba', 'aaa'], lacks: ['a', 'ab', 'ba'] },
    'a*b*c': { has: ['abc', 'axbxc', 'abbc', 'abcbc'], lacks: ['ac', 'acb', 'bc', 'ab'] },
    'ab*bc': { has: ['abbc', 'abxbc'], lacks: ['abc'] },
    '**': { has: ['a'], lacks: [] },
    'v.': { has: ['v.'], lacks: ['v1'] },
  }
  for (const [pattern, { has, lacks }] of Object.entries(sets)) {
    for (const tag of has) t.equal(matchesTag(pattern, tag), true, `${pattern} has ${shown(tag)}`)
    for (const tag of lacks) t.equal(matchesTag(pattern, tag), false, `${pattern} lacks ${shown(tag)}`)
  }
  const hostile = '*a'.repeat(64)
  costsLittle(
    t,
    'many stars',
    () => matchesTag(hostile, `${'a'.repeat(127)}b`),
    () => 'x'.repeat(128).split('y'),
  )

  const patterns = ['team/**:v*', 'team/app:release', '**:*-final'].map(parseTagPattern)
  t.strictSame(tagPatternsFor(patterns, 'team/app'), ['v*', 'release', '*-final'])
  t.strictSame(tagPatternsFor(patterns, 'team/other'), ['v*', '*-final'])
  t.strictSame(tagPatternsFor(patterns, 'app'), ['*-final'])
  for (const text of [
    '',
    'v*',
    ':v*',
    'team/app:',
    '*:v1',
    'Team/app:v1',
    'team/app:v 1',
    'team/app:v/1',
    `a:${'x'.repeat(129)}`,
  ]) {
    t.throws(() => parseTagPattern(text), RangeError, `${shown(text)} is no pattern`)
  }
})

// ---------------------------------------------------------------------------------------------
// JSON
// ---------------------------------------------------------------------------------------------

/** Parses text as a manifest's bytes. */
function parse(text: string): Record<string, unknown> {
  return parseJsonObject(Buffer.from(text))
}

t.test('json: one object comes back as JSON.parse gives it', async (t) => {
  const texts = [
    '{}',
    ' \t\r\n{ } \n',
    '{"a":1,"b":[1,2,{"c":null}],"d":{"e":true,"f":"g"}}',
    '{"a":{"x":1},"b":{"x":1},"c":[{"x":1},{"x":2}],"x":3}',
    '{"a":"a","b":"b","c":["a","a",{"a":"a"}]}',
    '{"a":"{\\"a\\":1,\\"a\\":2}","b":"}{][,:"}',
    '{"a\\"":1,"a":2,"a\\\\":3,"\\\\":4,"\\"":5}',
    '{"a":1,"A":2,"a ":3," a":4,"":5}',
    '{"é":1,"e\u0301":2,"\\u00c9":3,"🚢":4}',
    '{"constructor":1,"toString":2,"hasOwnProperty":3,"valueOf":4}',
    '{"a":[[],[[]],{}],"b":[],"c":{}}',
    '{"a":"\\u0000\\ud800","b":-0,"c":1e400,"d":0.1}',
  ]
  for (const text of texts) t.strictSame(parse(text), JSON.parse(text), text)
  const odd = parse('{"__proto__":{"polluted":true},"a":1}')
  t.ok(Object.hasOwn(odd, '__proto__'), '__proto__ is a member like any other')
  t.equal(Object.getPrototypeOf(odd), Object.prototype, 'and changes nothing else')
  t.notOk('polluted' in {}, 'anywhere')
})

t.test('json: two members of one name are refused, however they are written', async (t) => {
  const texts = [
    '{"a":1,"a":1}',
    '{"a":1,"b":2,"a":3}',
    '{"":1,"":2}',
    '{"a":{"b":{"c":1,"c":2}}}',
    '{"a":[1,{"b":1,"b":2}]}',
    '{"a":[{"b":1},{"b":1,"c":[],"b":2}]}',
    '{"a":{"x":1},"b":[],"a":2}',
    '{"a":[],"a":[]}',
    '{"a":"}","a":"{"}',
    '{"a":"\\"","a":1}',
    '{"a":"\\\\","a":1}',
    '{"a" :1, "a"\n:2}',
    '{"a":1,"\\u0061":2}',
    '{"\\u0061":1,"\\u0061":2}',
    '{"\\u0041":1,"\\u0041":2}',
    '{"\\u00e9":1,"é":2}',
    '{"\\u00E9":1,"\\u00e9":2}',
    '{"🚢":1,"\\ud83d\\udea2":2}',
    '{"/":1,"\\/":2}',
    '{"\\t":1,"\\u0009":2}',
    '{"a\\"":1,"a\\u0022":2}',
    '{"\\\\":1,"\\u005c":2}',
    '{"__proto__":1,"__proto__":2}',
    '{"__proto__":1,"\\u005f_proto__":2}',
    '{"layers":[],"layers":[{}]}',
  ]
  for (const text of texts)
    t.match(
      refusalOf(() => parse(text)),
      { kind: 'MANIFEST_INVALID', message: /one name/ },
      text,
    )
})

t.test('json: what is not one JSON object in UTF-8 is refused', async (t) => {
  // biome-ignore format: one line each would be long
  const texts = [
    '', ' ', '[]', '[{}]', '"a"', '1', 'null', 'true', '{', '}', '{}{}', '{} x', '{}}', '{]', '[}', '{"a"}', '{"a":}', '{"a":1,}', '{,}', '{a:1}',
    "{'a':1}", '{"a":1 "b":2}', '{"a":NaN}', '{"a":01}', '{"a":1.}', '{"a":+1}', '{"a":0x1}', '{"a":"\n"}', '{"a":"\\x"}', '{"a":"\\u12"}', '{"a":"',
    '{"a', '{"a":"\\', '{"a":"\\"', '{/**/}', '{}//', '\ufeff{}', '{}\0', '\0{}', '{"a":undefined}', ',', ':', '"', '""', ',"a":1', '[1,2',
  ]
  for (const text of texts) t.equal(refusalOf(() => parse(text))?.kind, 'MANIFEST_INVALID', shown(text))
  const bytes: Record<string, number[]> = {
    'a lone continuation byte': [0x80],
    'an overlong slash': [0xc0, 0xaf],
    'an overlong NUL': [0xc0, 0x80],
    'half a surrogate pair': [0xed, 0xa0, 0x80],
    'beyond Unicode': [0xf4, 0x90, 0x80, 0x80],
    'a cut sequence': [0xe2, 0x82],
    'Latin-1': [0xe9],
    'never a byte of UTF-8': [0xff],
  }
  for (const [what, sequence] of Object.entries(bytes)) {
    const text = Buffer.concat([Buffer.from('{"a":"'), Buffer.from(sequence), Buffer.from('"}')])
    t.match(
      refusalOf(() => parseJsonObject(text)),
      { kind: 'MANIFEST_INVALID', message: /UTF-8/ },
      what,
    )
  }
  const utf16 = Buffer.from('\ufeff{"a":1}', 'utf16le')
  t.equal(refusalOf(() => parseJsonObject(utf16))?.kind, 'MANIFEST_INVALID', 'UTF-16')
})

t.test('json: 64 levels are enough, 65 are too many, and a million do no harm', async (t) => {
  const nested = (depth: number, open: string, close: string) =>
    `{"a":${open.repeat(depth - 1)}1${close.repeat(depth - 1)}}`
  for (const [open, close] of [
    ['[', ']'],
    ['{"a":', '}'],
  ] as const) {
    t.equal(
      refusalOf(() => parse(nested(64, open, close))),
      undefined,
      `64 levels of ${open}`,
    )
    for (const depth of [65, 5000, 100_000]) {
      const refusal = refusalOf(() => parse(nested(depth, open, close)))
      t.match(refusal, { kind: 'MANIFEST_INVALID', message: /deeper than 64/ }, `${depth} levels of ${open}`)
    }
  }
  const open = `{"a":${'['.repeat(1_000_000)}`
  t.equal(refusalOf(() => parse(open))?.kind, 'MANIFEST_INVALID', 'a million that are never closed')
  const wide = `{"a":[${'[],{},'.repeat(50_000)}0]}`
  t.equal(
    refusalOf(() => parse(wide)),
    undefined,
    'a hundred thousand side by side',
  )
})

/** Numbers that look random and are the same at each run. */
function randomly(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

t.test('json: random documents are refused if and only if a name is there twice', async (t) => {
  const random = randomly(17)
  let hasDouble = false
  const names = ['a', 'b', 'é', '"', '\\', '{', '', '\n', '🚢', 'ab']

  function escaped(text: string): string {
    const quoted = JSON.stringify(text)
    if (random(3) > 0) return quoted
    const units = Array.from({ length: text.length }, (_, at) =>
      text.charCodeAt(at).toString(16).padStart(4, '0'),
    )
    return `"${units.map((unit) => `\\u${random(2) > 0 ? unit : unit.toUpperCase()}`).join('')}"`
  }
  function value(depth: number): string {
    const kind = random(depth > 5 ? 3 : 6)
    if (kind === 0) return escaped(`${names[random(names.length)]}{"a":1,"a":2}`)
    if (kind === 1) return String(random(1000) - 500)
    if (kind === 2) return ['true', 'false', 'null', '[]', '{}'][random(5)] ?? '0'
    const size = random(4)
    if (kind === 3) return `[${Array.from({ length: size }, () => value(depth + 1)).join(' , ')}]`
    return object(depth + 1, size)
  }
  function object(depth: number, size: number): string {
    const used = new Set<string>()
    const members = Array.from({ length: size }, () => {
      const name = names[random(names.length)] ?? ''
      if (used.has(name)) hasDouble = true
      used.add(name)
      return `${escaped(name)}${random(2) > 0 ? ' ' : ''}:${value(depth)}`
    })
    return `{${members.join(',')}}`
  }

  const seen = { refused: 0, parsed: 0 }
  for (let round = 0; round < 5000; round++) {
    hasDouble = false
    const text = object(1, 1 + random(3))
    const refusal = refusalOf(() => parse(text))
    if (refusal === undefined) seen.parsed++
    else seen.refused++
    if ((refusal !== undefined) !== hasDouble) t.fail(`${text}: ${refusal?.message ?? 'was taken'}`)
  }
  t.ok(seen.refused > 500 && seen.parsed > 500, `${seen.refused} refused, ${seen.parsed} parsed`)
})

t.test('json: hostile text takes no more than its share of time', async (t) => {
  const filled = (size: number, unit: string) => unit.repeat(Math.ceil(size / unit.length))
  const numbered = (size: number, unit: (number: number) => string) => {
    const parts: string[] = []
    for (let length = 0, number = 0; length < size; number++) {
      const part = unit(number)
      parts.push(part)
      length += part.length + 1
    }
    return parts.join(',')
  }
  const texts: Record<string, (size: number) => string> = {
    'a long string': (size) => `{"a":"${filled(size, 'x')}"}`,
    'a long name': (size) => `{"${filled(size, 'x')}":1}`,
    backslashes: (size) => `{"a":"${filled(size, '\\\\')}"}`,
    'backslashes as a name': (size) => `{"${filled(size, '\\\\')}":1}`,
    'escaped quotes': (size) => `{"a":"${filled(size, '\\"')}"}`,
    'backslashes before quotes': (size) => `{"a":"${filled(size, '\\\\\\\\\\\\\\"')}"}`,
    'escaped quotes without an end': (size) => `{"a":"${filled(size, '\\"')}`,
    'backslashes without an end': (size) => `{"a":"${filled(size, '\\\\')}\\`,
    'quotes alone': (size) => filled(size, '"'),
    'commas alone': (size) => `{${filled(size, ',')}`,
    'colons alone': (size) => `{${filled(size, ':')}`,
    'closing brackets': (size) => filled(size, ']}'),
    'empty objects': (size) => `{"a":[${filled(size, '{},')}{}]}`,
    'opening brackets': (size) => `{"a":${filled(size, '[')}`,
    'many names': (size) => `{${numbered(size, (number) => `"name-${number}":1`)}}`,
    'many names that are numbers': (size) => `{${numbered(size, (number) => `"${number * 4096}":1`)}}`,
    'many escaped names': (size) => `{${numbered(size, (number) => `"\\u006eame-${number}":1`)}}`,
    'names with one beginning': (size) => `{${numbered(size, (number) => `"${'x'.repeat(60)}${number}":1`)}}`,
    'a double at the end': (size) => `{${numbered(size, (number) => `"${number}":1`)},"0":2}`,
    'objects one name long': (size) => `{"a":[${numbered(size, () => '{"a":1}')}]}`,
    numbers: (size) => `{"a":[${numbered(size, (number) => `${number}.5e-3`)}]}`,
    'a long number': (size) => `{"a":${filled(size, '9')}}`,
  }
  for (const [what, make] of Object.entries(texts)) {
    growsLinearly(t, what, (size) => {
      const bytes = Buffer.from(make(size))
      return () => refusalOf(() => parseJsonObject(bytes))
    })
  }
})

t.test('json: what an object is', async (t) => {
  for (const value of [{}, { a: 1 }, Object.create(null)]) t.equal(isObject(value), true)
  for (const value of [null, undefined, [], 'a', 1, true, () => 1])
    t.equal(isObject(value), false, String(value))
})

// ---------------------------------------------------------------------------------------------
// Media types
// ---------------------------------------------------------------------------------------------

t.test('media types: which are manifests, and of which shape', async (t) => {
  const kinds: Record<string, string | undefined> = {
    [mediaTypes.ociManifest]: 'image',
    [mediaTypes.dockerManifest]: 'image',
    [mediaTypes.ociIndex]: 'index',
    [mediaTypes.dockerList]: 'index',
    [mediaTypes.ociArtifact]: 'artifact',
    'application/json': undefined,
    'application/vnd.docker.distribution.manifest.v1+json': undefined,
    'application/vnd.oci.image.manifest.v2+json': undefined,
    'application/vnd.oci.image.config.v1+json': undefined,
    constructor: undefined,
    '': undefined,
  }
  for (const [type, kind] of Object.entries(kinds)) t.equal(manifestKindOf(type), kind, type)
  t.equal(isSchema1('application/vnd.docker.distribution.manifest.v1+json'), true)
  t.equal(isSchema1('application/vnd.docker.distribution.manifest.v1+prettyjws'), true)
  t.equal(isSchema1(mediaTypes.dockerManifest), false)
  const withSubject = Object.values(mediaTypes).filter(canHaveSubject)
  t.strictSame(
    withSubject,
    [mediaTypes.ociManifest, mediaTypes.ociIndex, mediaTypes.ociArtifact],
    'OCI types alone',
  )
})

t.test('media types: layers that need not be pushed', async (t) => {
  const oci = 'application/vnd.oci.image.layer.nondistributable.v1.tar'
  const docker = 'application/vnd.docker.image.rootfs.foreign.diff.tar'
  for (const type of [oci, `${oci}+gzip`, `${oci}+zstd`, docker, `${docker}.gzip`]) {
    t.equal(isNonDistributable(type), true, type)
  }
  for (const type of [
    'application/vnd.oci.image.layer.v1.tar+gzip',
    'application/vnd.docker.image.rootfs.diff.tar.gzip',
    `${oci}+bzip2`,
    `${oci} `,
    `x${oci}`,
    oci.toUpperCase(),
    oci + 'x'.repeat(1000),
    '',
  ]) {
    t.equal(isNonDistributable(type), false, shown(type))
  }
})

t.test('media types: parameters and case are dropped', async (t) => {
  const bare: Record<string, string> = {
    'application/json': 'application/json',
    'Application/JSON; charset=utf-8': 'application/json',
    ' application/json ;charset=utf-8;x="a;b"': 'application/json',
    ';': '',
    '': '',
  }
  for (const [header, type] of Object.entries(bare)) t.equal(bareMediaType(header), type, shown(header))
  growsLinearly(t, 'a long header', (size) => {
    const header = `${' '.repeat(size)}x`
    return () => bareMediaType(header)
  })
})

// ---------------------------------------------------------------------------------------------
// Manifests
// ---------------------------------------------------------------------------------------------

const layerType = 'application/vnd.oci.image.layer.v1.tar+gzip'

/** The digest of a text. */
function of(text: string): Digest {
  return digestOf(Buffer.from(text))
}

function descriptor(text: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  return { mediaType: layerType, digest: of(text), size: text.length, ...more }
}

function image(more: Record<string, unknown> = {}): Record<string, unknown> {
  const config = descriptor('config', { mediaType: 'application/vnd.oci.image.config.v1+json' })
  return {
    schemaVersion: 2,
    mediaType: mediaTypes.ociManifest,
    config,
    layers: [descriptor('layer')],
    ...more,
  }
}

function index(more: Record<string, unknown> = {}): Record<string, unknown> {
  const manifests = [descriptor('child', { mediaType: mediaTypes.ociManifest, platform: { os: 'linux' } })]
  return { schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests, ...more }
}

/** A manifest without one of its members. */
function without(manifest: Record<string, unknown>, member: string): Record<string, unknown> {
  const { [member]: _left, ...rest } = manifest
  return rest
}

function read(manifest: unknown, contentType?: string): ParsedManifest {
  return parseManifest(Buffer.from(JSON.stringify(manifest)), contentType)
}

function child(text: string, role: 'blob' | 'manifest' = 'blob', required = true) {
  return { digest: of(text), size: text.length, role, required }
}

t.test('manifests: what each kind names', async (t) => {
  const nothing = { subject: undefined, artifactType: undefined, annotations: undefined }
  t.strictSame(read(image()), {
    mediaType: mediaTypes.ociManifest,
    children: [child('config'), child('layer')],
    ...nothing,
  })
  const docker = { ...image({ mediaType: mediaTypes.dockerManifest }) }
  t.strictSame(read(docker).mediaType, mediaTypes.dockerManifest, 'Docker’s image')
  t.strictSame(read(docker).children, [child('config'), child('layer')])
  t.strictSame(read(image({ layers: [] })).children, [child('config')], 'an image without layers')
  const twice = image({ layers: [descriptor('a'), descriptor('a')] })
  t.strictSame(read(twice).children, [child('config'), child('a'), child('a')], 'a layer twice')
  t.strictSame(read(index()), {
    mediaType: mediaTypes.ociIndex,
    children: [child('child', 'manifest')],
    ...nothing,
  })
  const list = index({ mediaType: mediaTypes.dockerList })
  t.strictSame(read(list).children, [child('child', 'manifest')], 'Docker’s list')
  t.strictSame(read(index({ manifests: [] })).children, [], 'an index without entries')
  const cache = index({
    manifests: [descriptor('layer'), descriptor('cache', { mediaType: 'application/x' })],
  })
  t.strictSame(
    read(cache).children,
    [child('layer', 'manifest'), child('cache', 'manifest')],
    'a build cache',
  )
  const artifact = { mediaType: mediaTypes.ociArtifact, artifactType: 'a/b', blobs: [descriptor('blob')] }
  t.strictSame(read(artifact).children, [child('blob')], 'an artifact')
  t.strictSame(read(without(artifact, 'blobs')).children, [], 'an artifact without blobs')
  const sha512 = digestOf(Buffer.from('layer'), 'sha512')
  const long = read(image({ layers: [descriptor('layer', { digest: sha512 })] }))
  t.strictSame(long.children[1]?.digest, sha512, 'a sha512 digest')
})

t.test('manifests: the type is where it stands, and both places must agree', async (t) => {
  const plain = without(image(), 'mediaType')
  const plainIndex = without(index(), 'mediaType')
  t.equal(read(plain).mediaType, mediaTypes.ociManifest, 'none at all, an image')
  t.equal(read(plainIndex).mediaType, mediaTypes.ociIndex, 'none at all, an index')
  t.equal(read(plain, mediaTypes.dockerManifest).mediaType, mediaTypes.dockerManifest, 'the header alone')
  t.equal(
    read(plainIndex, mediaTypes.dockerList).mediaType,
    mediaTypes.dockerList,
    'the header alone, an index',
  )
  t.equal(read(image()).mediaType, mediaTypes.ociManifest, 'the member alone')
  t.equal(read(image(), mediaTypes.ociManifest).mediaType, mediaTypes.ociManifest, 'both')
  const odd = `${mediaTypes.ociManifest.toUpperCase()} ; charset="utf-8"`
  t.equal(read(image(), odd).mediaType, mediaTypes.ociManifest, 'with parameters and in capitals')
  t.equal(read(image(), '').mediaType, mediaTypes.ociManifest, 'an empty header')
  for (const [manifest, header] of [
    [image(), mediaTypes.dockerManifest],
    [image(), mediaTypes.ociIndex],
    [index(), mediaTypes.ociManifest],
    [image(), 'application/json'],
  ] as const) {
    const refusal = refusalOf(() => read(manifest, header))
    t.match(
      refusal,
      { kind: 'MANIFEST_INVALID', message: /Content-Type/ },
      `${header} for ${manifest.mediaType}`,
    )
  }
})

t.test('manifests: unknown members and unknown types of content pass', async (t) => {
  const odd = image({
    config: descriptor('config', { mediaType: 'application/x.y', data: undefined, extra: [1] }),
    layers: [descriptor('layer', { mediaType: '', annotations: { a: 'b' }, artifactType: 'x', platform: 1 })],
    annotations: { '': '', 'org.example': 'ü', constructor: 'c' },
    unknown: { layers: [], manifests: [{}] },
    blobs: 'of another kind',
  })
  t.equal(
    refusalOf(() => read(odd)),
    undefined,
  )
  t.strictSame(read(odd).annotations, { '': '', 'org.example': 'ü', constructor: 'c' })
  t.equal(read(image({ annotations: null })).annotations, undefined, 'no annotations at all')
})

t.test('manifests: what is wrong is refused, and named', async (t) => {
  const layers = (entry: unknown) => image({ layers: [descriptor('first'), entry] })
  const faults: [unknown, RegExp][] = [
    [[], /not a JSON object/],
    [without(image(), 'schemaVersion'), /schemaVersion/],
    [image({ schemaVersion: '2' }), /schemaVersion/],
    [image({ schemaVersion: 3 }), /schemaVersion/],
    [image({ schemaVersion: null }), /schemaVersion/],
    [index({ schemaVersion: 0 }), /schemaVersion/],
    [image({ schemaVersion: 1 }), /schema version 1/],
    [{ schemaVersion: 1, name: 'a', fsLayers: [] }, /schema version 1/],
    [image({ mediaType: 'application/json' }), /not supported/],
    [image({ mediaType: '' }), /not supported/],
    [image({ mediaType: 7 }), /mediaType/],
    [image({ mediaType: null }), /mediaType/],
    [without(image(), 'config'), /^config/],
    [image({ config: null }), /^config/],
    [image({ config: 'x' }), /^config/],
    [image({ config: [] }), /^config/],
    [without(image(), 'layers'), /^layers/],
    [image({ layers: null }), /^layers/],
    [image({ layers: {} }), /^layers/],
    [image({ layers: 'x' }), /^layers/],
    [without(index(), 'manifests'), /^manifests/],
    [index({ manifests: null }), /^manifests/],
    [index({ manifests: [null] }), /^manifests\[0\]/],
    [layers(null), /^layers\[1\]/],
    [layers([]), /^layers\[1\]/],
    [layers('x'), /^layers\[1\]/],
    [layers(without(descriptor('a'), 'mediaType')), /^layers\[1\]\.mediaType/],
    [layers(descriptor('a', { mediaType: 1 })), /^layers\[1\]\.mediaType/],
    [layers(without(descriptor('a'), 'digest')), /^layers\[1\]\.digest/],
    ...badDigests.map((digest): [unknown, RegExp] => [
      layers(descriptor('a', { digest })),
      /^layers\[1\]\.digest/,
    ]),
    [layers(descriptor('a', { digest: { sha256: hex64 } })), /^layers\[1\]\.digest/],
    [layers(without(descriptor('a'), 'size')), /^layers\[1\]\.size/],
    ...[-1, 0.5, 2 ** 53, 1e300, '1', null, true, [1], {}].map((size): [unknown, RegExp] => [
      layers(descriptor('a', { size })),
      /^layers\[1\]\.size/,
    ]),
    [image({ manifests: [] }), /"manifests"/],
    [image({ manifests: null }), /"manifests"/],
    [image({ fsLayers: [] }), /"fsLayers"/],
    [index({ layers: [] }), /"layers"/],
    [index({ config: descriptor('c') }), /"config"/],
    [index({ layers: undefined, fsLayers: [] }), /"fsLayers"/],
    [{ mediaType: mediaTypes.ociArtifact, layers: [] }, /"layers"/],
    [{ mediaType: mediaTypes.ociArtifact, blobs: {} }, /^blobs/],
    [image({ annotations: [] }), /annotations/],
    [image({ annotations: 'x' }), /annotations/],
    [image({ annotations: { a: 1 } }), /annotations/],
    [image({ annotations: { a: null } }), /annotations/],
    [image({ subject: null }), /^subject/],
    [image({ subject: 'x' }), /^subject/],
    [image({ subject: {} }), /^subject/],
    [image({ subject: descriptor('s', { digest: 'sha256:x' }) }), /^subject\.digest/],
    [index({ subject: descriptor('s', { size: -1 }) }), /^subject\.size/],
  ]
  for (const [manifest, message] of faults) {
    t.match(
      refusalOf(() => read(manifest)),
      { kind: 'MANIFEST_INVALID', message },
      shown(JSON.stringify(manifest)),
    )
  }
  const infinite = JSON.stringify(image()).replace('"size":5', '"size":1e400')
  t.match(
    refusalOf(() => parseManifest(Buffer.from(infinite), undefined)),
    { message: /size/ },
    'an infinite size',
  )
  t.equal(
    refusalOf(() => read(image({ layers: [descriptor('', {})] }))),
    undefined,
    'an empty layer is right',
  )
  for (const header of [
    'application/vnd.docker.distribution.manifest.v1+json',
    'application/octet-stream',
    'x',
  ]) {
    const refusal = refusalOf(() => read(without(image(), 'mediaType'), header))
    t.equal(refusal?.kind, 'MANIFEST_INVALID', `as ${header}`)
  }
  const long = refusalOf(() => read(image({ mediaType: `x\n${'y'.repeat(100_000)}` })))
  t.ok(
    (long?.message.length ?? 0) < 300 && !long?.message.includes('\n'),
    'what the client wrote is shown in short',
  )
})

t.test('manifests: a subject, and what a referrers list shows of who has one', async (t) => {
  const subject = descriptor('subject', { mediaType: mediaTypes.ociManifest })
  const annotations = { a: 'b' }
  const configType = 'application/vnd.oci.image.config.v1+json'
  const withType = read(image({ subject, annotations, artifactType: 'x/y' }))
  t.match(withType, { subject: of('subject'), artifactType: 'x/y', annotations }, 'its own type')
  t.equal(read(image({ subject })).artifactType, configType, 'that of its config')
  t.equal(
    read(image({ subject, artifactType: '' })).artifactType,
    configType,
    'that of its config, for an empty one',
  )
  t.equal(
    read(image({ subject, artifactType: 7 })).artifactType,
    configType,
    'that of its config, for a number',
  )
  t.match(
    read(index({ subject, artifactType: 'x/y' })),
    { subject: of('subject'), artifactType: 'x/y' },
    'an index',
  )
  t.equal(read(index({ subject })).artifactType, undefined, 'an index has no config')
  const artifact = { mediaType: mediaTypes.ociArtifact, artifactType: 'x/y', subject }
  t.match(read(artifact), { subject: of('subject'), artifactType: 'x/y' }, 'an artifact')
  t.notOk(
    read(image({ subject })).children.some(({ digest }) => digest === of('subject')),
    'it is no child',
  )
  for (const type of [mediaTypes.dockerManifest, mediaTypes.dockerList]) {
    const manifest = type === mediaTypes.dockerList ? index({ subject }) : image({ subject: 'ignored' })
    t.equal(read({ ...manifest, mediaType: type }).subject, undefined, `${type} has none`)
  }
})

t.test('manifests: content that lies elsewhere or stands inline need not be here', async (t) => {
  const required = (entry: Record<string, unknown>) => read(image({ layers: [entry] })).children[1]?.required
  const foreign = 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip'
  t.equal(required(descriptor('a')), true, 'a layer')
  t.equal(required(descriptor('a', { urls: [] })), true, 'without any place')
  t.equal(required(descriptor('a', { urls: 'x' })), true, 'with a place that is none')
  t.equal(required(descriptor('a', { urls: ['https://example.com/a'] })), false, 'with a place')
  t.equal(required(descriptor('a', { mediaType: foreign })), false, 'of a foreign type')
  const inline = Buffer.from('a').toString('base64')
  t.equal(required(descriptor('a', { data: inline })), false, 'inline')
  t.equal(required({ ...descriptor(''), data: '' }), false, 'inline and empty')
  const entry = descriptor('a', { mediaType: mediaTypes.ociManifest, urls: ['https://example.com/a'] })
  t.equal(
    read(index({ manifests: [entry] })).children[0]?.required,
    true,
    'an entry of an index must be here',
  )
})

t.test('manifests: inline content must be what its descriptor says', async (t) => {
  const data = Buffer.from('inline').toString('base64')
  t.equal(
    refusalOf(() => read(image({ layers: [descriptor('inline', { data })] }))),
    undefined,
    'as it says',
  )
  const sha512 = descriptor('inline', { data, digest: digestOf(Buffer.from('inline'), 'sha512') })
  t.equal(
    refusalOf(() => read(image({ layers: [sha512] }))),
    undefined,
    'by sha512',
  )
  const bytes = Buffer.from([0xfb, 0xff])
  const odd = { mediaType: layerType, digest: digestOf(bytes), size: 2 }
  t.equal(
    refusalOf(() => read(image({ layers: [{ ...odd, data: '+/8=' }] }))),
    undefined,
    'with + and /',
  )
  for (const [what, entry] of Object.entries({
    'the alphabet of URLs': { ...odd, data: '-_8=' },
    'no padding': { ...odd, data: '+/8' },
    'other bytes': descriptor('inline', { data: Buffer.from('online').toString('base64') }),
    'another size': descriptor('inline', { data, size: 5 }),
    'a byte more': descriptor('inline', { data: Buffer.from('inline!').toString('base64') }),
    nothing: descriptor('inline', { data: '' }),
    'no text': descriptor('inline', { data: 7 }),
    null: descriptor('inline', { data: null }),
    'no base64': descriptor('inline', { data: `${data.slice(0, 4)}!*~ ${data.slice(4)}` }),
    'too much padding': descriptor('inline', { data: `${data}====` }),
  })) {
    // Clients written in Go cannot read a manifest with inline content that is not base64 to the letter.
    const refusal = refusalOf(() => read(image({ layers: [entry] })))
    t.match(refusal, { kind: 'MANIFEST_INVALID', message: /^layers\[0\]\.data/ }, what)
  }
})

t.test('manifests: large ones take no more than their share of time', async (t) => {
  t.equal(largestManifest, 4 * 1024 * 1024, 'the largest is what clients read back')
  const many = (size: number, unit: (number: number) => Record<string, unknown>) => {
    const count = Math.ceil(size / JSON.stringify(unit(0)).length)
    return Array.from({ length: count }, (_, number) => unit(number))
  }
  const manifests: Record<string, (size: number) => unknown> = {
    'many layers': (size) => image({ layers: many(size, (number) => descriptor(`${number}`)) }),
    'one layer many times': (size) => image({ layers: many(size, () => descriptor('a')) }),
    'many entries': (size) => index({ manifests: many(size, (number) => descriptor(`${number}`)) }),
    'many inline layers': (size) =>
      image({
        layers: many(size, (number) =>
          descriptor(`${number}`, { data: Buffer.from(`${number}`).toString('base64') }),
        ),
      }),
    'long inline content': (size) => {
      const text = 'x'.repeat(size)
      return image({ layers: [descriptor(text, { data: Buffer.from(text).toString('base64') })] })
    },
    'many annotations': (size) =>
      image({
        annotations: Object.fromEntries(many(size, () => ({ a: 1 })).map((_, at) => [`key-${at}`, 'v'])),
      }),
    'a long annotation': (size) => image({ annotations: { a: 'x'.repeat(size) } }),
    'a long media type': (size) => image({ layers: [descriptor('a', { mediaType: 'x/'.repeat(size / 2) })] }),
    'many places': (size) => image({ layers: [descriptor('a', { urls: many(size, () => ({ u: 1 })) })] }),
  }
  for (const [what, make] of Object.entries(manifests)) {
    growsLinearly(t, what, (size) => {
      const bytes = Buffer.from(JSON.stringify(make(size)))
      t.equal(
        refusalOf(() => parseManifest(bytes, undefined)),
        undefined,
        `${what}: taken`,
      )
      return () => parseManifest(bytes, undefined)
    })
  }
})

// ---------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------

t.test('errors: each has a status, a code and a sentence of its own', async (t) => {
  for (const [kind, { code, status, message }] of Object.entries(errorTable)) {
    t.ok(status >= 400 && status <= 599, `${kind}: ${status} is an error`)
    t.match(code, /^[A-Z_]+$/, `${kind}: the code ${code}`)
    t.match(message, /^\S.*[^.\s]$/, `${kind}: the message is a phrase`)
  }
  for (const kind of Object.keys(errorTable) as (keyof typeof errorTable)[]) {
    const error = new RegistryError(kind)
    t.equal(error.status, errorTable[kind].status)
    t.strictSame(error.entries, [{ code: errorTable[kind].code, message: errorTable[kind].message }], kind)
  }
})

t.test('errors: what goes to the client, and what does not', async (t) => {
  const cause = new Error('/secret/path')
  const plain = new RegistryError('UNAVAILABLE', 'a sentence', { cause, retryAfter: 5 })
  t.strictSame(plain.entries, [{ code: 'UNAVAILABLE', message: 'a sentence' }], 'no cause')
  t.match(plain, { cause, retryAfter: 5, name: 'RegistryError' }, 'it is kept for the log')
  const detailed = new RegistryError('BLOB_UNKNOWN', undefined, { detail: { digest: 'd' } })
  t.match(detailed.entries, [{ code: 'BLOB_UNKNOWN', detail: { digest: 'd' } }], 'the detail')
  const entries = [
    { code: 'A', message: 'a' },
    { code: 'B', message: 'b', detail: 1 },
  ]
  t.strictSame(new RegistryError('MANIFEST_BLOB_UNKNOWN', undefined, { entries }).entries, entries, 'several')
  t.equal(
    new RegistryError('MANIFEST_BLOB_UNKNOWN', undefined, { entries: [] }).entries.length,
    1,
    'never none',
  )
  const range = new UploadRangeError({ repository: 'r', id: 'i', offset: 7 }, 'too far')
  t.match(
    range,
    { kind: 'RANGE_INVALID', status: 416, repository: 'r', id: 'i', offset: 7 },
    'where the upload is',
  )
  t.ok(range instanceof RegistryError)
})
