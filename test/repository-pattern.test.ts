import t from 'tap'
import { ZodError } from 'zod'
import { resolveConfig } from '../config/schema.js'
import {
  joinPrefixes,
  matchesRepository,
  parseRepositoryPattern,
  prefixOf,
} from '../src/oci/repository-pattern.js'

const matches = (pattern: string, name: string) => matchesRepository(parseRepositoryPattern(pattern), name)

t.test('a pattern is the set of repositories that its segments describe', async (t) => {
  const sets: Record<string, { has: string[]; lacks: string[] }> = {
    'team/app': { has: ['team/app'], lacks: ['team', 'team/app/x', 'team/ap', 'team/apps', 'x/team/app'] },
    app: { has: ['app'], lacks: ['app/x', 'x/app', 'apps'] },
    'team/*': { has: ['team/a', 'team/b-c'], lacks: ['team', 'team/a/b', 'teams/a', 'a'] },
    'team/**': { has: ['team/a', 'team/a/b', 'team/a/b/c/d'], lacks: ['team', 'teams/a', 'a/team/b'] },
    '*/app': { has: ['a/app', 'b/app'], lacks: ['app', 'a/b/app', 'a/apps'] },
    'a/*/c': { has: ['a/b/c'], lacks: ['a/c', 'a/b/b/c', 'a/b/d'] },
    '*/*': { has: ['a/b'], lacks: ['a', 'a/b/c'] },
    '*/**': { has: ['a/b', 'a/b/c'], lacks: ['a'] },
    '**': { has: ['a', 'a/b', 'a/b/c'], lacks: [] },
  }
  for (const [pattern, { has, lacks }] of Object.entries(sets)) {
    for (const name of has) t.ok(matches(pattern, name), `${pattern} has ${name}`)
    for (const name of lacks) t.notOk(matches(pattern, name), `${pattern} lacks ${name}`)
  }
})

// biome-ignore format: one line each would hide the grammar
const good = [
  'a', 'a0/b', 'a.b/c_d/e__f/g-h/i---j', 'team/*', 'team/**', '**', '*/app', '*/*', '*/**', 'a/*/**', 'x'.repeat(255),
]
// biome-ignore format: as above
const bad = [
  '', '*', '/', '/a', 'a/', 'a//b', 'A', 'team/App', 'a..b', 'a___b', 'a._b', '-a', 'a-', '_a', 'a*', '*a', 'team/app-*', '***',
  'a/***', '**/a', 'a/**/b', '**/**', 'a b', 'a/ *', 'a:b', 'a@b', 'ä', 'a\n', 'a/../b', '.', 'x'.repeat(256),
]

t.test('what a pattern matches begins with its prefix, and no prefix in a list covers another', async (t) => {
  const prefixes = {
    'team/app': 'team/app',
    'team/**': 'team/',
    'a/*/c': 'a/',
    '*/app': '',
    '**': '',
    app: 'app',
  }
  for (const [pattern, prefix] of Object.entries(prefixes)) {
    t.equal(prefixOf(parseRepositoryPattern(pattern)), prefix, pattern)
  }
  t.strictSame(joinPrefixes(['b', 'a/c', 'a/', 'b', 'a-']), ['a-', 'a/', 'b'], 'in order, each once')
  t.strictSame(joinPrefixes(['b', '', 'a']), [''], 'all covers the others')
  t.strictSame(joinPrefixes([]), [], 'none stays none')
})

t.test('the parser and the configuration agree on what a pattern is', async (t) => {
  const configure = (pattern: string) => resolveConfig({ manifests: { sparse: [pattern] } }).manifests.sparse
  for (const pattern of good) {
    t.equal(parseRepositoryPattern(pattern).text, pattern)
    t.strictSame(configure(pattern), [pattern])
  }
  for (const pattern of bad) {
    t.throws(
      () => parseRepositoryPattern(pattern),
      RangeError,
      `the parser refuses ${JSON.stringify(pattern)}`,
    )
    // The configuration forgives spaces round a pattern, which a parser of one pattern does not see.
    if (pattern === pattern.trim()) {
      t.throws(() => configure(pattern), ZodError, `the configuration refuses ${JSON.stringify(pattern)}`)
    }
  }
})

t.test('what is wrong with a pattern is a sentence', async (t) => {
  t.throws(() => parseRepositoryPattern('*'), { message: /write \*\* to mean all repositories\.$/ })
  t.throws(() => parseRepositoryPattern('team/App'), {
    message: /"team\/App" has the segment "App", which is .*\.$/,
  })
  t.throws(() => parseRepositoryPattern('x'.repeat(256)), {
    message: /255 characters, and this one has 256\.$/,
  })
})

t.test('hostile patterns and names take no time', async (t) => {
  const pattern = parseRepositoryPattern(`${'*/'.repeat(120)}**`)
  const almost = ['a-'.repeat(127), `${'a__'.repeat(80)}!`, `${'a/'.repeat(120)}!`]
  const refuses = (run: () => unknown) => {
    try {
      run()
      return 0
    } catch {
      return 1
    }
  }
  const started = process.hrtime.bigint()
  let refused = 0
  for (let round = 0; round < 200; round++) {
    if (!matchesRepository(pattern, 'a/'.repeat(100))) refused++
    for (const text of almost) {
      refused += refuses(() => parseRepositoryPattern(text))
      refused += refuses(() => resolveConfig({ manifests: { sparse: [text] } }))
    }
  }
  t.equal(refused, 200 * 7)
  t.ok(process.hrtime.bigint() - started < 5_000_000_000n, 'in far less than 5 s')
})
