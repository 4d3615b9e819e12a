import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
  type YAMLMap,
} from 'yaml'
import type { z } from 'zod'
import type { Findings } from './findings.js'
import { readKeyLines } from './key-lines.js'
import { schema, sectionOf, settings } from './schema.js'
import { nearest, plain, sentence, showName } from './words.js'

const mostAliases = 100

/** Troubles whose words in the parser are meant for programmers. */
const troubles: Readonly<Record<string, string>> = {
  MULTIPLE_DOCS: 'a second document begins here, and one is all there may be',
  RESOURCE_EXHAUSTION: 'it is nested too deeply',
}

interface YamlSource {
  readonly file: string
  readonly document: Document
  readonly lines: LineCounter
  readonly findings: Findings
}

/**
 * Adds what the settings in a YAML file hold to the findings, and the faults it sees there. Answers with the
 * fault that makes the file unusable as a whole, or undefined.
 */
export function readYaml(file: string, content: Buffer, findings: Findings): string | undefined {
  const text = decode(content)
  if (text === undefined) return `${file} is not UTF-8 text: write it as YAML in UTF-8.`
  const lines = new LineCounter()
  // Keys written twice are found below, where they can be named; the parser compares each key with each other.
  const document = parseDocument(text, { uniqueKeys: false, prettyErrors: false, lineCounter: lines })
  const trouble = document.errors[0] ?? document.warnings[0]
  if (trouble !== undefined) {
    const { line, col } = lines.linePos(trouble.pos[0])
    // One broken place makes the parser stumble over all that follows, hence the first alone.
    const message = sentence(troubles[trouble.code] ?? trouble.message)
    return `${file} is not valid YAML at line ${line}, column ${col}: ${message}`
  }
  const root = document.contents
  if (isEmpty(root)) return undefined
  if (!isMap(root)) return `${file} holds no settings: write each as a name, a colon and a value.`
  readSection(root, schema.shape, '', { file, document, lines, findings })
  return undefined
}

function decode(content: Buffer): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(content)
  } catch {
    return undefined
  }
}

type Shape = Readonly<Record<string, z.ZodType>>

function readSection(map: YAMLMap, shape: Shape, prefix: string, source: YamlSource): void {
  const { file, findings } = source
  const firstLines = new Map<string, number>()
  for (const { key, value } of map.items) {
    const name = isScalar(key) ? String(key.value) : '?'
    const path = `${prefix}${name}`
    const line = source.lines.linePos((isScalar(key) ? key.range?.[0] : undefined) ?? 0).line
    const earlier = firstLines.get(name)
    firstLines.set(name, earlier ?? line)
    const part = Object.hasOwn(shape, name) ? shape[name] : undefined
    if (part === undefined) {
      const hint = hintFor(path, prefix)
      findings.faults.push(`${showName(path)} in ${file}, line ${line}, is not a setting: ${hint}`)
    } else if (earlier !== undefined) {
      findings.faults.push(`${path} in ${file} is ${twice([earlier, line])}`)
    } else {
      readPart(path, part, value as Node | null, source)
    }
  }
}

function twice([earlier, line]: readonly [number, number]): string {
  return `written twice, on lines ${earlier} and ${line}: keep one of them.`
}

function readPart(path: string, part: z.ZodType, written: Node | null, source: YamlSource): void {
  const { file, document, findings } = source
  const place = `${path} in ${file}`
  const section = sectionOf(part)
  const node = isAlias(written) ? written.resolve(document) : written
  if (section === undefined) {
    readSetting(path, place, node, source)
  } else if (isMap(node)) {
    readSection(node, section, `${path}.`, source)
  } else if (!isEmpty(node)) {
    const names = Object.keys(section).join(', ')
    findings.faults.push(`${place} is not a section: write ${names} on lines below it.`)
  }
}

function readSetting(path: string, place: string, node: Node | null | undefined, source: YamlSource): void {
  const { file, document, findings } = source
  const setting = settings.find((candidate) => candidate.path === path)
  if (setting === undefined) throw new Error(`the schema does not list its own setting ${path}`)
  const value = readValue(node, document)
  if (value !== undefined) {
    const { lines, repeated } = readKeyLines(node, source.lines)
    findings.written.push({ setting, place, value, file, lines })
    findings.faults.push(...repeated.map((key) => `${path}${key.path} in ${file} is ${twice(key.lines)}`))
    return
  }
  findings.unreadable.add(path)
  findings.faults.push(
    `${place} holds a YAML alias that leads nowhere or too far: write the value out, and put quotes round a ` +
      'value that begins with *.',
  )
}

/** The value of a node, or undefined when its aliases lead nowhere or multiply. */
function readValue(node: Node | null | undefined, document: Document): unknown {
  if (node === undefined) return undefined
  try {
    return node?.toJS(document, { maxAliasCount: mostAliases }) ?? null
  } catch {
    return undefined
  }
}

/** Nothing is written there, as in a section whose settings are all commented out. */
function isEmpty(node: unknown): boolean {
  return node === null || (isScalar(node) && node.value === null)
}

function hintFor(path: string, prefix: string): string {
  const paths = settings.map((setting) => setting.path)
  const [section, name] = path.split('.')
  if (prefix === '' && paths.includes(path)) {
    return `write ${section}: on a line, and ${name}: on the line below it, indented.`
  }
  const candidates = [...paths, ...Object.keys(schema.shape)]
  const near =
    nearest(path, candidates) ?? paths.find((candidate) => plain(candidate).endsWith(`.${plain(path)}`))
  return near === undefined ? 'boathouse serve --help lists all settings.' : `did you mean ${near}?`
}
