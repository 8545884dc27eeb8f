"""What the notes are made of: measures, and per diagnosis its specialties, findings and plans.

Invented for demonstration, from textbook commonplaces. Not medical knowledge to act on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SPECIALTIES = (
    "cardiology",
    "pulmonology",
    "gastroenterology",
    "neurology",
    "endocrinology",
    "nephrology",
    "infectious disease",
    "rheumatology",
)


@dataclass(frozen=True)
class Measure:
    """A vital sign or a laboratory value: its usual mean and spread, and the usual range."""

    unit: str
    mean: float
    spread: float
    low: float
    high: float
    decimals: int = 0


VITALS: Mapping[str, Measure] = {
    "BP": Measure("mmHg", 124, 8, 90, 140),
    "HR": Measure("bpm", 76, 8, 50, 100),
    "temp": Measure("C", 36.8, 0.3, 35.5, 37.9, 1),
    "RR": Measure("a minute", 15, 2, 10, 21),
    "SpO2": Measure("%", 97, 1, 93, 100),
}
LABS: Mapping[str, Measure] = {
    "glucose": Measure("mmol/L", 5.4, 0.6, 3.8, 7.8, 1),
    "creatinine": Measure("umol/L", 80, 10, 45, 110),
    "hemoglobin": Measure("g/L", 140, 8, 118, 170),
    "ferritin": Measure("ug/L", 110, 30, 25, 300),
    "white cells": Measure("x10^9/L", 7.0, 1.2, 4.0, 11.0, 1),
    "CRP": Measure("mg/L", 4, 2, 0, 10),
    "TSH": Measure("mU/L", 2.0, 0.6, 0.4, 4.2, 1),
    "troponin": Measure("ng/L", 6, 2, 0, 14),
    "BNP": Measure("ng/L", 40, 15, 0, 100),
    "lipase": Measure("U/L", 30, 8, 0, 60),
    "ALT": Measure("U/L", 24, 7, 0, 45),
    "sodium": Measure("mmol/L", 140, 2, 135, 145),
    "calcium": Measure("mmol/L", 2.35, 0.07, 2.1, 2.6, 2),
    "albumin": Measure("g/L", 42, 3, 35, 50),
    "urate": Measure("umol/L", 300, 40, 150, 420),
    "ESR": Measure("mm/h", 10, 4, 0, 22),
    "D-dimer": Measure("ug/L", 220, 80, 0, 500),
}


@dataclass(frozen=True)
class Diagnosis:
    """`symptoms` from the most to the least typical; `shifted` are this diagnosis's own means."""

    name: str
    specialties: tuple[str, ...]
    age: int
    symptoms: tuple[str, ...]
    plans: tuple[str, ...]
    shifted: Mapping[str, float] = field(default_factory=dict)


_CARD, _PULM, _GAST, _NEUR, _ENDO, _NEPH, _INF, _RHEU = ((name,) for name in SPECIALTIES)

DIAGNOSES = (
    Diagnosis(
        "Heart failure",
        _CARD + _PULM,
        72,
        ("breathlessness on exertion", "swollen ankles", "orthopnea", "fatigue"),
        ("start furosemide and check weight daily", "order an echocardiogram"),
        {"BNP": 900, "SpO2": 92, "HR": 96},
    ),
    Diagnosis(
        "Hypertension",
        _CARD + _NEPH,
        58,
        ("headache in the morning", "no complaints", "blurred vision", "nosebleeds"),
        ("start amlodipine and recheck pressure", "reduce salt and start ramipril"),
        {"BP": 172},
    ),
    Diagnosis(
        "Atrial fibrillation",
        _CARD,
        70,
        ("palpitations", "irregular pulse", "lightheadedness", "fatigue"),
        ("start apixaban and rate control", "order a 24 hour ECG"),
        {"HR": 128},
    ),
    Diagnosis(
        "Myocardial infarction",
        _CARD,
        64,
        ("crushing chest pain", "sweating", "pain in the left arm", "nausea"),
        ("give aspirin and call the cath lab", "admit to coronary care"),
        {"troponin": 480, "HR": 98},
    ),
    Diagnosis(
        "Pericarditis",
        _CARD,
        36,
        ("chest pain worse lying down", "friction rub", "pain on breathing in", "fever"),
        ("start colchicine and ibuprofen", "repeat the ECG in a week"),
        {"CRP": 60, "troponin": 20, "temp": 38.0},
    ),
    Diagnosis(
        "Pneumonia",
        _PULM + _INF,
        62,
        ("productive cough", "fever", "crackles at one base", "pain on breathing in"),
        ("start amoxicillin and order a chest film", "give antibiotics and review in two days"),
        {"temp": 38.8, "white cells": 15.5, "CRP": 140, "SpO2": 92, "RR": 25},
    ),
    Diagnosis(
        "COPD exacerbation",
        _PULM,
        68,
        ("worsening cough", "wheeze", "long smoking history", "purulent sputum"),
        ("give prednisolone and nebulizers", "start doxycycline and inhalers"),
        {"SpO2": 88, "RR": 26},
    ),
    Diagnosis(
        "Asthma",
        _PULM,
        28,
        ("wheeze", "cough at night", "chest tightness", "seasonal allergies"),
        ("start inhaled budesonide", "teach inhaler technique and peak flow"),
        {"RR": 23},
    ),
    Diagnosis(
        "Pulmonary embolism",
        _PULM,
        55,
        ("sudden breathlessness", "pain on breathing in", "one swollen calf", "coughing blood"),
        ("start heparin and order a CT angiogram", "begin apixaban for three months"),
        {"D-dimer": 2600, "HR": 114, "SpO2": 91},
    ),
    Diagnosis(
        "Pancreatitis",
        _GAST,
        50,
        ("pain through to the back", "vomiting", "heavy alcohol use", "upper belly pain"),
        ("admit for fluids and pain relief", "order an ultrasound for stones"),
        {"lipase": 900, "white cells": 13.5, "HR": 106},
    ),
    Diagnosis(
        "Peptic ulcer",
        _GAST,
        52,
        ("burning upper belly pain", "black stools", "daily ibuprofen use", "nausea"),
        ("start omeprazole and test for helicobacter", "book an endoscopy"),
        {"hemoglobin": 108},
    ),
    Diagnosis(
        "Cholecystitis",
        _GAST,
        48,
        ("right upper belly pain", "pain after fatty meals", "fever", "vomiting"),
        ("give ceftriaxone and call surgery", "order an ultrasound of the gallbladder"),
        {"temp": 38.4, "ALT": 90, "CRP": 95},
    ),
    Diagnosis(
        "Celiac disease",
        _GAST,
        32,
        ("bloating", "loose stools", "weight loss", "itchy rash on the elbows"),
        ("check antibodies and plan a biopsy", "begin a gluten free diet"),
        {"ferritin": 18, "albumin": 33},
    ),
    Diagnosis(
        "Iron deficiency anemia",
        _GAST + _RHEU,
        46,
        ("fatigue", "pale skin", "craving for ice", "breathlessness on exertion"),
        ("start oral iron and look for bleeding", "book an endoscopy and give iron"),
        {"hemoglobin": 88, "ferritin": 7},
    ),
    Diagnosis(
        "Migraine",
        _NEUR,
        33,
        ("throbbing one sided headache", "light hurts the eyes", "zigzag aura", "nausea"),
        ("give sumatriptan and keep a diary", "start propranolol for prevention"),
    ),
    Diagnosis(
        "Ischemic stroke",
        _NEUR,
        73,
        ("sudden weakness of one arm", "facial droop", "slurred speech", "irregular pulse"),
        ("order an urgent head CT", "give aspirin and admit to the stroke unit"),
        {"BP": 168},
    ),
    Diagnosis(
        "Epilepsy",
        _NEUR,
        27,
        ("witnessed convulsion", "bitten tongue", "confusion afterwards", "staring spells"),
        ("start levetiracetam and stop driving", "order an EEG and MRI"),
    ),
    Diagnosis(
        "Meningitis",
        _NEUR + _INF,
        24,
        ("stiff neck", "fever", "light hurts the eyes", "drowsiness"),
        ("give ceftriaxone now and do a lumbar puncture", "admit and take blood cultures"),
        {"temp": 39.2, "white cells": 18, "CRP": 170},
    ),
    Diagnosis(
        "Parkinson disease",
        _NEUR,
        70,
        ("tremor at rest", "shuffling gait", "small handwriting", "stiff limbs"),
        ("start levodopa and physiotherapy", "review balance and sleep"),
    ),
    Diagnosis(
        "Type 2 diabetes",
        _ENDO,
        56,
        ("thirst", "passing much urine", "blurred vision", "weight gain"),
        ("start metformin and refer to a dietitian", "check HbA1c and screen eyes"),
        {"glucose": 15},
    ),
    Diagnosis(
        "Hypothyroidism",
        _ENDO,
        49,
        ("weight gain", "feeling cold", "dry skin", "fatigue"),
        ("start levothyroxine", "repeat thyroid tests in six weeks"),
        {"TSH": 28, "HR": 56},
    ),
    Diagnosis(
        "Hyperthyroidism",
        _ENDO + _CARD,
        40,
        ("weight loss", "palpitations", "heat intolerance", "fine tremor"),
        ("start carbimazole and a beta blocker", "order thyroid antibodies"),
        {"TSH": 0.0, "HR": 112},
    ),
    Diagnosis(
        "Adrenal insufficiency",
        _ENDO,
        42,
        ("dizziness on standing", "darkened skin creases", "salt craving", "weight loss"),
        ("give hydrocortisone and teach sick day rules", "order a synacthen test"),
        {"sodium": 126, "BP": 92},
    ),
    Diagnosis(
        "Hyperparathyroidism",
        _ENDO + _NEPH,
        60,
        ("constipation", "bone pain", "low mood", "passing much urine"),
        ("check parathyroid hormone", "refer to endocrine surgery"),
        {"calcium": 2.95},
    ),
    Diagnosis(
        "Chronic kidney disease",
        _NEPH,
        69,
        ("itching", "fatigue", "poor appetite", "swollen ankles"),
        ("avoid ibuprofen and recheck in a month", "start ramipril and check potassium"),
        {"creatinine": 290, "hemoglobin": 106, "BP": 150},
    ),
    Diagnosis(
        "Nephrotic syndrome",
        _NEPH,
        38,
        ("puffy eyes", "frothy urine", "swollen ankles", "weight gain"),
        ("plan a kidney biopsy and give furosemide", "start prednisolone"),
        {"albumin": 20},
    ),
    Diagnosis(
        "Kidney stones",
        _NEPH,
        43,
        ("flank pain in waves", "blood in the urine", "vomiting", "restlessness"),
        ("give diclofenac and order a CT", "drink plenty and strain urine"),
        {"HR": 98},
    ),
    Diagnosis(
        "Lupus",
        _NEPH + _RHEU,
        31,
        ("rash over the cheeks", "joint pains", "mouth ulcers", "hair loss"),
        ("start hydroxychloroquine", "check complement and urine protein"),
        {"ESR": 62, "white cells": 3.2},
    ),
    Diagnosis(
        "Urinary tract infection",
        _INF,
        45,
        ("burning on passing urine", "frequency", "lower belly pain", "cloudy urine"),
        ("start nitrofurantoin", "send a urine culture and review"),
        {"white cells": 12.5},
    ),
    Diagnosis(
        "Cellulitis",
        _INF,
        57,
        ("hot red skin on the leg", "spreading redness", "fever", "one swollen calf"),
        ("start flucloxacillin and mark the edge", "raise the leg and give antibiotics"),
        {"CRP": 110, "temp": 38.3, "white cells": 14},
    ),
    Diagnosis(
        "Infectious mononucleosis",
        _INF,
        19,
        ("sore throat", "swollen neck glands", "fatigue", "fever"),
        ("rest and avoid contact sport", "check a monospot and liver tests"),
        {"ALT": 130, "temp": 38.2},
    ),
    Diagnosis(
        "Rheumatoid arthritis",
        _RHEU,
        52,
        ("swollen finger joints", "morning stiffness for hours", "fatigue", "joint pains"),
        ("start methotrexate with folic acid", "check antibodies and hand films"),
        {"ESR": 55, "CRP": 45},
    ),
    Diagnosis(
        "Gout",
        _RHEU,
        59,
        ("red painful big toe", "sudden pain at night", "heavy alcohol use", "swollen knee"),
        ("give colchicine and rest the joint", "start allopurinol in two weeks"),
        {"urate": 560, "CRP": 40},
    ),
    Diagnosis(
        "Polymyalgia rheumatica",
        _RHEU,
        74,
        ("aching shoulders", "aching hips", "morning stiffness for hours", "weight loss"),
        ("start prednisolone and review in a week", "check bone density"),
        {"ESR": 78, "CRP": 50},
    ),
    Diagnosis(
        "Sepsis",
        _INF,
        66,
        ("shivering", "fever", "confusion", "mottled skin"),
        ("give antibiotics and fluids within the hour", "take cultures and admit"),
        {"temp": 39.4, "BP": 86, "HR": 124, "white cells": 21, "CRP": 220},
    ),
)

SYMPTOMS = tuple(sorted({symptom for d in DIAGNOSES for symptom in d.symptoms}))
